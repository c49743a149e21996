//! Where a function of a Go program can carry a probe: behind its check of the stack, where it has no frame yet.
//!
//! A Go function begins with a comparison of the stack pointer with the goroutine's limit and a jump to where the stack is
//! made larger (`stacksplit` in `src/cmd/internal/obj/x86/obj6.go`), after which it begins anew. What follows is, from Go 1.21 on,
//! `push rbp`. The kernel emulates that, and the jump; it would have to single-step the comparison. At either, the arguments are
//! in their registers (`src/cmd/compile/abi-internal.md`), and the stack pointer is at the return address.
//!
//! Never is a return probe placed in Go code: it would replace a return address, and Go moves stacks.

use std::ops::Range;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use object::ReadRef;

use super::{
    CodeReader, ProbePoint,
    code::{Code, direct_target, disassemble},
    error::Refusal,
    image::Image,
    kernel_rules::{Handling, handling},
    verify::verify,
};

/// More instructions than the check of the stack has, which is six for the largest frames.
const MAX_CHECK: usize = 8;
/// The longest function that is decoded and compared (bytes).
const MAX_FUNCTION: u64 = 1 << 16;

/// Where the functions of Go's `net/http` are probed that tell for whom it connects.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DialSites {
    /// In `(*Transport).queueForDial`, which runs in the goroutine that asks.
    pub wanted: ProbePoint,
    /// In `(*Transport).dialConnFor`, which runs in the goroutine that dials.
    pub dialed: ProbePoint,
    /// Where the runtime's structure of a goroutine has its fields: [`memtrace_ebpf::handles::goroutine`].
    pub fields: u64,
}

/// The place for a probe in the Go function that has this range (virtual addresses as the ELF file counts).
///
/// `image` is the file that the target maps and `live` its memory, as for [`super::plan`].
///
/// # Errors
/// Why there is none, in words.
pub fn after_stack_check<'d, R: ReadRef<'d>>(
    image: R,
    range: Range<u64>,
    live: &dyn CodeReader,
) -> Result<ProbePoint, String> {
    let image = Image::parse(image).map_err(|error| error.to_string())?;
    find(&image, range, live).map_err(|refusal| refusal.to_string())
}

fn find<'d, R: ReadRef<'d>>(
    image: &Image<'d, R>,
    range: Range<u64>,
    live: &dyn CodeReader,
) -> Result<ProbePoint, Refusal> {
    let length = range.end.saturating_sub(range.start);
    if length > MAX_FUNCTION {
        return Err(Refusal::TooLarge(length));
    }
    let code = image.code(range)?;
    verify(code, live)?;
    let instruction = choose(code, image.allows_shadow_stack()).ok_or(Refusal::NoStackCheck)?;
    let vaddr = instruction.ip();
    Ok(ProbePoint {
        file_offset: image.file_offset(vaddr).ok_or(Refusal::NotInCode)?,
        vaddr,
        function_offset: (vaddr - code.address) as u32,
        instruction: disassemble(&instruction),
        emulated: true,
    })
}

/// The `push rbp` behind the check, else the last jump of the check; if the kernel emulates it.
fn choose(code: Code<'_>, shadow_stack: bool) -> Option<Instruction> {
    let mut jump = None;
    let mut chosen = None;
    for instruction in code.instructions().take(MAX_CHECK) {
        if is_frame(&instruction) {
            chosen = Some(instruction).filter(|_| jump.is_some());
            break;
        }
        if is_way_out(&instruction, code) {
            jump = Some(instruction);
        } else if !is_comparison(&instruction) {
            break;
        }
    }
    let is_emulated = |instruction: &Instruction| {
        let offset = instruction.ip() - code.address;
        handling(instruction, code.encoding(instruction), offset, shadow_stack) == Handling::Emulated
    };
    chosen.or(jump).filter(is_emulated)
}

/// `push rbp`.
fn is_frame(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Push && instruction.op0_register() == Register::RBP
}

/// A conditional jump, further into the function, to where the stack is made larger.
fn is_way_out(instruction: &Instruction, code: Code<'_>) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Jbe | Mnemonic::Jb)
        && direct_target(instruction)
            .is_some_and(|target| target > instruction.next_ip() && code.contains(target))
}

/// What computes and compares the stack pointer: `lea r12,[rsp-…]` or `mov r12,rsp` and `sub r12,…`, then `cmp r12,[r14+…]`; of a
/// small frame only `cmp rsp,[r14+…]`. It changes nothing but `r12` and the flags.
fn is_comparison(instruction: &Instruction) -> bool {
    let result = instruction.op0_register();
    match instruction.mnemonic() {
        Mnemonic::Lea => result == Register::R12 && instruction.memory_base() == Register::RSP,
        Mnemonic::Mov => result == Register::R12 && instruction.op1_register() == Register::RSP,
        Mnemonic::Sub => result == Register::R12,
        Mnemonic::Cmp => {
            matches!(result, Register::R12 | Register::RSP)
                && instruction.op1_kind() == OpKind::Memory
                && instruction.memory_base() == Register::R14
        }
        _ => false,
    }
}
