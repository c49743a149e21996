//! Which areas are the heap of a Go runtime.

use super::seed::owner;
use crate::target::Vma;

/// Marks the areas of the heap around an address that is known to be in it.
///
/// The runtime maps one arena behind the other, as long as there is room (`mheap.sysAlloc` in `src/runtime/malloc.go`),
/// far from where the kernel puts mappings. They are all private memory without a file, accessible or only reserved.
pub fn mark_go_heap(vmas: &mut [Vma], address: u64) {
    let is_arena = |vma: &Vma| !vma.file && !vma.shared && owner(vma).is_none();
    let is_there = |vma: &Vma| (vma.begin..vma.end).contains(&address);
    let Some(first) = vmas.iter().position(|vma| is_there(vma) && is_arena(vma)) else {
        return;
    };
    vmas[first].is_go_heap = true;
    for above in first + 1..vmas.len() {
        if vmas[above].begin != vmas[above - 1].end || !is_arena(&vmas[above]) {
            break;
        }
        vmas[above].is_go_heap = true;
    }
    for below in (0..first).rev() {
        if vmas[below].end != vmas[below + 1].begin || !is_arena(&vmas[below]) {
            break;
        }
        vmas[below].is_go_heap = true;
    }
}
