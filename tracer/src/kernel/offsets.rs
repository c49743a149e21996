//! Where this kernel keeps what the programs read of it, from its own description of its types (BTF).

use aya::{Ebpf, maps::Array};
use btf_rs::{Btf, Type};
use memtrace_ebpf::handles::Offsets;

use super::KernelError;

/// The kernel's description of its types (`Documentation/bpf/btf.rst`).
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";
/// How deep members without a name nest.
const DEPTH: u32 = 4;

/// Tells the programs the offsets. False if they are not known: kinds then come from the calls alone.
///
/// # Errors
/// When the map cannot be filled.
pub(super) fn provide(ebpf: &mut Ebpf) -> Result<bool, KernelError> {
    let name = "OFFSETS";
    let offsets = Btf::from_file(KERNEL_TYPES).ok().and_then(|btf| find(&btf));
    if offsets.is_none() {
        log::info!(
            "{KERNEL_TYPES} does not say what is needed: kinds of descriptors come from the calls alone"
        );
    }
    let unusable = |source| KernelError::Map { name, source };
    let map = ebpf.map_mut(name).ok_or(KernelError::Missing(name))?;
    let mut map: Array<_, [u8; size_of::<Offsets>()]> = Array::try_from(map).map_err(unusable)?;
    let bytes = bytes_of(offsets.unwrap_or_default());
    map.set(0, bytes, 0).map_err(unusable)?;
    Ok(offsets.is_some())
}

fn bytes_of(offsets: Offsets) -> [u8; size_of::<Offsets>()] {
    // SAFETY: the struct is plain numbers without padding, so every byte is initialized.
    unsafe { std::mem::transmute(offsets) }
}

fn find(btf: &Btf) -> Option<Offsets> {
    let of = |type_name: &str, member: &str| member_of(btf, type_name, member);
    let (result_argument, result_is_pointer) = completion(btf).unwrap_or_default();
    Some(Offsets {
        known: 1,
        task_files: of("task_struct", "files")?,
        files_fdt: of("files_struct", "fdt")?,
        fdt_max: of("fdtable", "max_fds")?,
        fdt_fd: of("fdtable", "fd")?,
        file_inode: of("file", "f_inode")?,
        file_private: of("file", "private_data")?,
        inode_mode: of("inode", "i_mode")?,
        inode_super: of("inode", "i_sb")?,
        super_magic: of("super_block", "s_magic")?,
        socket_sock: of("socket", "sk")?,
        sock_family: of("sock_common", "skc_family")?,
        sock_type: of("sock", "sk_type")?,
        sock_protocol: of("sock", "sk_protocol")?,
        request_opcode: of("io_kiocb", "opcode").unwrap_or(0),
        result_argument,
        result_is_pointer,
        vma_file: of("vm_area_struct", "vm_file").unwrap_or(0),
    })
}

/// The offset of a member of a struct (bytes).
fn member_of(btf: &Btf, type_name: &str, member: &str) -> Option<u32> {
    let types = btf.resolve_types_by_name(type_name).ok()?;
    types.iter().find_map(|of| offset_in(btf, of, member, DEPTH))
}

fn offset_in(btf: &Btf, of: &Type, wanted: &str, depth: u32) -> Option<u32> {
    let (Type::Struct(of) | Type::Union(of)) = of else {
        return None;
    };
    of.members.iter().find_map(|member| {
        let offset = member.bit_offset() / 8;
        match btf.resolve_name(member) {
            Ok(name) if name == wanted => Some(offset),
            Ok(name) if !name.is_empty() => None,
            _ if depth == 0 => None,
            _ => {
                let inner = btf.resolve_chained_type(member).ok()?;
                Some(offset + offset_in(btf, &inner, wanted, depth - 1)?)
            }
        }
    })
}

/// Which argument of the tracepoint `io_uring_complete` holds the result, and whether it points to the completion instead
/// (`include/trace/events/io_uring.h`: `res` up to Linux 6.13, then `cqe`).
fn completion(btf: &Btf) -> Option<(u32, u32)> {
    let types = btf.resolve_types_by_name("btf_trace_io_uring_complete").ok()?;
    let of = types.iter().find_map(|of| match of {
        Type::Typedef(of) => Some(of),
        _ => None,
    })?;
    let mut next = btf.resolve_chained_type(of).ok()?;
    loop {
        match next {
            Type::Ptr(pointer) => next = btf.resolve_chained_type(&pointer).ok()?,
            Type::FuncProto(function) => {
                // The first is not the tracepoint's own.
                let parameters = function.parameters.iter().skip(1);
                return parameters.zip(0..).find_map(|(parameter, index)| {
                    let name = btf.resolve_name(parameter).ok()?;
                    match name.as_str() {
                        "res" => Some((index, 0)),
                        "cqe" => Some((index, 1)),
                        _ => None,
                    }
                });
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Btf, KERNEL_TYPES, find};

    #[test]
    fn this_kernel_describes_itself() {
        let Ok(btf) = Btf::from_file(KERNEL_TYPES) else {
            println!("SKIPPED: this kernel has no {KERNEL_TYPES}");
            return;
        };
        let offsets = find(&btf).expect("every struct is described");
        println!("{offsets:?}");
        assert!(offsets.task_files > 0 && offsets.sock_family > 0 && offsets.sock_family < 64);
        assert_ne!(offsets.sock_type, offsets.sock_protocol);
    }
}
