//! Where this kernel keeps what the programs read of it, from its own description of its types (BTF).

use aya::{Ebpf, maps::Array};
use btf_rs::{Btf, Type};
use memtrace_ebpf::handles::Offsets;

use super::KernelError;

/// The kernel's description of its types (`Documentation/bpf/btf.rst`).
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";
/// How deep members without a name nest.
const DEPTH: u32 = 4;

/// Tells the programs the offsets; returns the program that sees what an io_uring has done, if this kernel tells.
///
/// # Errors
/// When the map cannot be filled.
pub(super) fn provide(ebpf: &mut Ebpf) -> Result<Option<&'static str>, KernelError> {
    let name = "OFFSETS";
    let btf = Btf::from_file(KERNEL_TYPES).ok();
    let offsets = btf.as_ref().and_then(find);
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
    let requests = offsets.filter(|offsets| offsets.request_opcode != 0 && offsets.close_fd != 0);
    Ok(btf.filter(|_| requests.is_some()).as_ref().and_then(completion))
}

fn bytes_of(offsets: Offsets) -> [u8; size_of::<Offsets>()] {
    // SAFETY: the struct is plain numbers without padding, so every byte is initialized.
    unsafe { std::mem::transmute(offsets) }
}

fn find(btf: &Btf) -> Option<Offsets> {
    let of = |type_name: &str, member: &str| member_of(btf, type_name, member);
    Some(Offsets {
        known: 1,
        task_files: of("task_struct", "files")?,
        task_signal: of("task_struct", "signal")?,
        signal_flags: of("signal_struct", "flags")?,
        files_fdt: of("files_struct", "fdt")?,
        fdt_max: of("fdtable", "max_fds")?,
        fdt_fd: of("fdtable", "fd")?,
        file_inode: of("file", "f_inode")?,
        file_private: of("file", "private_data")?,
        file_dentry: of("file", "f_path")? + of("path", "dentry")?,
        dentry_name: of("dentry", "d_name")? + of("qstr", "name")?,
        inode_mode: of("inode", "i_mode")?,
        inode_super: of("inode", "i_sb")?,
        super_magic: of("super_block", "s_magic")?,
        socket_sock: of("socket", "sk")?,
        sock_family: of("sock_common", "skc_family")?,
        sock_type: of("sock", "sk_type")?,
        sock_protocol: of("sock", "sk_protocol")?,
        request_opcode: of("io_kiocb", "opcode").unwrap_or(0),
        close_fd: of("io_close", "fd").unwrap_or(0),
        close_slot: of("io_close", "file_slot").unwrap_or(0),
        open_slot: of("io_open", "file_slot").unwrap_or(0),
        accept_slot: of("io_accept", "file_slot").unwrap_or(0),
        socket_slot: of("io_socket", "file_slot").unwrap_or(0),
        pipe_slot: of("io_pipe", "file_slot").unwrap_or(0),
        pipe_fds: of("io_pipe", "fds").unwrap_or(0),
        message: of("io_sr_msg", "umsg").unwrap_or(0),
        vma_start: of("vm_area_struct", "vm_start")?,
        vma_end: of("vm_area_struct", "vm_end")?,
        vma_file: of("vm_area_struct", "vm_file")?,
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

/// The program for the tracepoint `io_uring_complete`, whose arguments changed (`include/trace/events/io_uring.h`: `req` is
/// the second since Linux 6.0; `res` the fourth, or `cqe` the third since 6.13).
fn completion(btf: &Btf) -> Option<&'static str> {
    // What the kernel calls for each program at the tracepoint (`include/linux/tracepoint.h`).
    let types = btf.resolve_types_by_name("__traceiter_io_uring_complete").ok()?;
    let function = types.iter().find_map(|of| match of {
        Type::Func(of) => btf.resolve_chained_type(of).ok(),
        _ => None,
    })?;
    let Type::FuncProto(function) = function else {
        return None;
    };
    // The first is not the tracepoint's own.
    let parameters = function.parameters.iter().skip(1);
    let names: Vec<String> = parameters
        .map(|parameter| btf.resolve_name(parameter).unwrap_or_default())
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match names.as_slice() {
        [_, "req", "cqe", ..] => Some("request_done_by_entry"),
        [_, "req", _, "res", ..] => Some("request_done"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Btf, KERNEL_TYPES, completion, find};

    #[test]
    fn this_kernel_describes_itself() {
        let Ok(btf) = Btf::from_file(KERNEL_TYPES) else {
            println!("SKIPPED: this kernel has no {KERNEL_TYPES}");
            return;
        };
        let offsets = find(&btf).expect("every struct is described");
        println!("{offsets:?}, {:?}", completion(&btf));
        assert!(offsets.task_files > 0 && offsets.sock_family > 0 && offsets.sock_family < 64);
        assert_ne!(offsets.sock_type, offsets.sock_protocol);
    }
}
