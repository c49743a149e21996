//! The same walk by framehop, which evaluates `.eh_frame` itself.

use framehop::{
    ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder as _,
    x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64},
};
use libc::{REG_RBP, REG_RIP, REG_RSP};
use object::{Object as _, ObjectSection as _};

use crate::{
    debuggee::{Debuggee, Registers},
    walker::Code,
};

/// `mov $15, %rax; syscall`: how a signal handler returns (`rt_sigreturn`, recognized by GCC's unwinder too).
const SIGRETURN: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];

/// More frames than any test has: the end of a walk that goes in circles.
const MANY_FRAMES: usize = 1000;

/// framehop with the modules of one process.
pub struct Oracle {
    unwinder: UnwinderX86_64<Vec<u8>>,
    cache: CacheX86_64,
}

impl Oracle {
    pub fn of(code: &[Code]) -> Self {
        let mut unwinder = UnwinderX86_64::new();
        for code in code {
            let file = object::File::parse(&*code.data).expect("mapped code is ELF");
            let section = |name: &str| {
                let section = file.section_by_name(name)?;
                let data = section.data().ok()?.to_vec();
                Some((section.address()..section.address() + section.size(), data))
            };
            let (eh_frame_svma, eh_frame) = section(".eh_frame").expect("mapped code has .eh_frame");
            let (eh_frame_hdr_svma, eh_frame_hdr) = section(".eh_frame_hdr").unzip();
            unwinder.add_module(Module::new(
                code.mapped.name.clone(),
                code.mapped.begin..code.mapped.end,
                code.bias,
                ExplicitModuleSectionInfo {
                    eh_frame_svma: Some(eh_frame_svma),
                    eh_frame: Some(eh_frame),
                    eh_frame_hdr_svma,
                    eh_frame_hdr,
                    ..ExplicitModuleSectionInfo::default()
                },
            ));
        }
        Self {
            unwinder,
            cache: CacheX86_64::new(),
        }
    }

    /// The addresses of all frames, innermost first, as long as framehop finds any.
    ///
    /// framehop takes the address that a signal interrupted for a return address and looks one byte before it, so
    /// it starts anew with the registers of the `ucontext` there.
    pub fn walk(&mut self, debuggee: &Debuggee, start: Registers) -> Vec<u64> {
        let mut address = FrameAddress::from_instruction_pointer(start.pc);
        let mut registers = UnwindRegsX86_64::new(start.pc, start.sp, start.fp);
        let mut frames = Vec::new();
        while frames.len() < MANY_FRAMES {
            frames.push(address.address());
            if let Some(interrupted) = interrupted(debuggee, address.address(), registers.sp()) {
                address = FrameAddress::from_instruction_pointer(interrupted.pc);
                registers = UnwindRegsX86_64::new(interrupted.pc, interrupted.sp, interrupted.fp);
                continue;
            }
            let mut read_stack = |address| debuggee.read_u64(address).ok_or(());
            let caller =
                self.unwinder
                    .unwind_frame(address, &mut registers, &mut self.cache, &mut read_stack);
            match caller.ok().flatten().and_then(FrameAddress::from_return_address) {
                Some(caller) => address = caller,
                None => break,
            }
        }
        frames
    }
}

/// The registers that a signal interrupted, if this is the frame of its trampoline.
fn interrupted(debuggee: &Debuggee, pc: u64, sp: u64) -> Option<Registers> {
    let mut code = [0; SIGRETURN.len()];
    debuggee.read(pc, &mut code).ok()?;
    if code != SIGRETURN {
        return None;
    }
    let mut bytes = [0; size_of::<libc::ucontext_t>()];
    debuggee.read(sp, &mut bytes).ok()?;
    // SAFETY: a `ucontext_t` is made of integers and of pointers that are not followed.
    let context: libc::ucontext_t = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
    let register = |index: i32| context.uc_mcontext.gregs[index as usize] as u64;
    Some(Registers {
        pc: register(REG_RIP),
        sp: register(REG_RSP),
        fp: register(REG_RBP),
    })
}
