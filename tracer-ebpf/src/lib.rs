//! What the kernel side and user space share: the layout of every map, and the stack walker.
//!
//! The walker ([`walk`]) is plain generic code over two traits, so that the programs run it in the kernel and
//! unit tests run the very same code natively.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod bound;
pub mod calls;
pub mod handles;
pub mod layout;
pub mod sampling;
pub mod unwind;
pub mod walk;
