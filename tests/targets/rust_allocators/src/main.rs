//! A Rust program that knows its own heap, with the global allocator that its feature names; without one, the system's.
//!
//! It allocates, reallocates and frees at random through all that a global allocator offers, from 12 call sites, and
//! speaks as `ground_truth.c` does: `ready PID`, then `go OPS SEED`, `drain` and `exit`, and the books as answer.

use std::{
    alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc},
    hint::black_box,
    io::{BufRead as _, Write as _},
    ptr::null_mut,
};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static GLOBAL: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A block, or a null pointer.
#[derive(Clone, Copy)]
struct Block {
    address: *mut u8,
    layout: Layout,
    site: usize,
}

/// What a site does: gets a block, empty when it is to allocate, and the layout wanted; returns the address.
type Site = fn(Block, Layout) -> *mut u8;

macro_rules! sites {
    ($($name:ident: $call:expr,)*) => {
        $(
            #[unsafe(no_mangle)]
            #[inline(never)]
            fn $name(old: Block, wanted: Layout) -> *mut u8 {
                let call: fn(Block, Layout) -> *mut u8 = $call;
                // What follows the call keeps the site's frame on the stack, and the sites from being one.
                black_box((call(old, wanted), stringify!($name))).0
            }
        )*
        const SITES: &[(&str, Site)] = &[$((stringify!($name), $name),)*];
    };
}

// SAFETY, for all: sizes are not 0, and `old` is a live block with its layout.
sites! {
    site_alloc_00: |_, wanted| unsafe { alloc(wanted) },
    site_alloc_01: |_, wanted| unsafe { alloc(wanted) },
    site_alloc_02: |_, wanted| unsafe { alloc(wanted) },
    site_alloc_03: |_, wanted| unsafe { alloc(wanted) },
    site_zeroed_00: |_, wanted| unsafe { alloc_zeroed(wanted) },
    site_zeroed_01: |_, wanted| unsafe { alloc_zeroed(wanted) },
    site_zeroed_02: |_, wanted| unsafe { alloc_zeroed(wanted) },
    site_zeroed_03: |_, wanted| unsafe { alloc_zeroed(wanted) },
    site_realloc_00: |old, wanted| unsafe { realloc(old.address, old.layout, wanted.size()) },
    site_realloc_01: |old, wanted| unsafe { realloc(old.address, old.layout, wanted.size()) },
    site_realloc_02: |old, wanted| unsafe { realloc(old.address, old.layout, wanted.size()) },
    site_realloc_03: |old, wanted| unsafe { realloc(old.address, old.layout, wanted.size()) },
}

/// The first site that reallocates.
const REALLOCATING: usize = 8;
/// Blocks held at once.
const SLOTS: usize = 512;

#[derive(Clone, Copy, Default)]
struct Book {
    alloc_objects: u64,
    alloc_bytes: u64,
    inuse_objects: i64,
    inuse_bytes: i64,
}

struct Program {
    books: [Book; SITES.len()],
    slots: [Block; SLOTS],
    random: u64,
    operations: u64,
}

impl Program {
    /// xorshift64: the same seed gives the same operations.
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) as usize % bound
    }

    fn layout(&mut self) -> Layout {
        let size = match self.below(64) {
            0 => 128 * 1024 + self.below(128 * 1024),
            1..=40 => 1 + self.below(512),
            _ => 1 + self.below(8192),
        };
        let alignment = if self.below(4) == 0 {
            1 << self.below(13)
        } else {
            8
        };
        Layout::from_size_align(size, alignment).expect("a small size and a power of two")
    }

    fn allocated(&mut self, site: usize, size: usize) {
        let book = &mut self.books[site];
        book.alloc_objects += 1;
        book.alloc_bytes += size as u64;
        book.inuse_objects += 1;
        book.inuse_bytes += size as i64;
    }

    fn released(&mut self, block: Block) {
        let book = &mut self.books[block.site];
        book.inuse_objects -= 1;
        book.inuse_bytes -= block.layout.size() as i64;
    }

    fn free(&mut self, slot: usize) {
        let block = std::mem::replace(&mut self.slots[slot], EMPTY);
        if !block.address.is_null() {
            self.released(block);
            // SAFETY: the block is live and has this layout.
            unsafe { dealloc(block.address, block.layout) };
        }
    }

    fn operate(&mut self) {
        self.operations += 1;
        let slot = self.below(SLOTS);
        let old = self.slots[slot];
        let mut layout = self.layout();
        if old.address.is_null() {
            let site = self.below(REALLOCATING);
            let address = SITES[site].1(old, layout);
            assert!(!address.is_null(), "an allocation failed");
            self.slots[slot] = Block {
                address,
                layout,
                site,
            };
            self.allocated(site, layout.size());
        } else if self.below(2) == 0 {
            self.free(slot);
        } else {
            let site = REALLOCATING + self.below(SITES.len() - REALLOCATING);
            layout = Layout::from_size_align(layout.size(), old.layout.align()).expect("a small size");
            let address = SITES[site].1(old, layout);
            assert!(!address.is_null(), "a reallocation failed");
            self.released(old);
            self.slots[slot] = Block {
                address,
                layout,
                site,
            };
            self.allocated(site, layout.size());
        }
    }

    fn print(&self) {
        let mut out = std::io::stdout().lock();
        for ((name, _), book) in SITES.iter().zip(&self.books) {
            let Book {
                alloc_objects,
                alloc_bytes,
                inuse_objects,
                inuse_bytes,
            } = book;
            writeln!(
                out,
                "{name} {alloc_objects} {alloc_bytes} {inuse_objects} {inuse_bytes}"
            )
            .expect("stdout is open");
        }
        writeln!(out, "end {}", self.operations).expect("stdout is open");
    }
}

const EMPTY: Block = Block {
    address: null_mut(),
    layout: Layout::new::<u8>(),
    site: 0,
};

fn main() {
    let mut program = Program {
        books: [Book::default(); SITES.len()],
        slots: [EMPTY; SLOTS],
        random: 1,
        operations: 0,
    };
    println!("ready {}", std::process::id());
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("stdin is text");
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["go", operations, seed] => {
                let seed: u64 = seed.parse().expect("the seed is a number");
                program.random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                for _ in 0..operations.parse().expect("the operations are a number") {
                    program.operate();
                }
                program.print();
            }
            ["drain"] => {
                (0..SLOTS).for_each(|slot| program.free(slot));
                program.print();
            }
            ["exit"] => return,
            _ => panic!("no such command: {line}"),
        }
    }
}
