//! Where the runtime's variables are: by the symbol table, else by what the runtime's own functions refer to.
//!
//! Each variable is the only one to which two functions refer in a certain way, in Go 1.19 and 1.21 to 1.27 the same
//! way, with `-buildmode=pie` and external linking too. In code that was compiled without optimization (`-N -l`) some are
//! not found. What is found is compared with memory before it is used.

use object::read::ReadRef;

use super::code::{Access, References};
use super::image::Image;
use super::pclntab::Pclntab;
use super::{GoError, Memory, Variables, read_u32, read_u64, read_words};

/// The longest function of the runtime that is decoded, in bytes.
const MAX_FUNCTION: u64 = 1 << 16;
/// The sampling rate that every program begins with, in bytes (`runtime/mprof.go`).
const DEFAULT_RATE: u64 = 512 * 1024;
/// Where cycles begin anew (`mProfCycleWrap`, `runtime/mprof.go`).
const CYCLE_WRAP: u32 = 3 * (2 << 24);
/// `bucket.typ` of an allocation (`memProfile`, `runtime/mprof.go`), and where it is in a bucket.
const MEMORY_BUCKET: (u64, u64) = (1, 16);
/// Where `g.sched.g` is: a pointer to the `g` itself (`runtime/runtime2.go`).
const G_SELF: u64 = 72;
/// Where `g.m` is.
const G_M: u64 = 48;
/// How many goroutines are looked at; one that is being made does not refer to itself yet.
const GOROUTINES: usize = 16;

/// Where the variables are (virtual addresses in the file).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Locations {
    mbuckets: Option<u64>,
    mprof_cycle: Option<u64>,
    mem_profile_rate: Option<u64>,
    allgs: Option<u64>,
    allm: Option<u64>,
}

impl Locations {
    /// Finds them; the symbol table is believed first.
    pub fn find<'d, R: ReadRef<'d>>(image: &Image<'d, R>, table: &Pclntab) -> Self {
        let named = Self::by_symbol(image);
        let referred = Self::by_reference(image, table);
        Self {
            mbuckets: named.mbuckets.or(referred.mbuckets),
            mprof_cycle: named.mprof_cycle.or(referred.mprof_cycle),
            mem_profile_rate: named.mem_profile_rate.or(referred.mem_profile_rate),
            allgs: named.allgs.or(referred.allgs),
            allm: named.allm.or(referred.allm),
        }
    }

    pub(super) fn by_symbol<'d, R: ReadRef<'d>>(image: &Image<'d, R>) -> Self {
        let [mbuckets, mprof_cycle, mem_profile_rate, allgs, allm] = image.symbols([
            "runtime.mbuckets",
            "runtime.mProfCycle",
            "runtime.MemProfileRate",
            "runtime.allgs",
            "runtime.allm",
        ]);
        Self {
            mbuckets,
            mprof_cycle,
            mem_profile_rate,
            allgs,
            allm,
        }
    }

    pub(super) fn by_reference<'d, R: ReadRef<'d>>(image: &Image<'d, R>, table: &Pclntab) -> Self {
        let of = |name: &str| references(image, table, name).unwrap_or_default();
        Self {
            mbuckets: mbuckets(&of("runtime.mProf_FlushLocked"), &of("runtime.stkbucket")),
            mprof_cycle: mprof_cycle(&of("runtime.mProf_Malloc"), &of("runtime.mProf_Flush")),
            mem_profile_rate: mem_profile_rate(&of("runtime.allocmcache"), &of("runtime.profilealloc"))
                .filter(|address| begins_with_default(image, *address)),
            allgs: allgs(&of("runtime.forEachG"), &of("runtime.allgadd")),
            allm: allm(&of("runtime.mexit"), &of("runtime.mcommoninit")),
        }
    }

    /// Their addresses in a process, of those that contain what they should.
    pub fn in_process(&self, memory: &dyn Memory, bias: u64) -> Result<Variables, GoError> {
        let at = |location: Option<u64>, proof: Proof| {
            let Some(address) = location.map(|location| location.wrapping_add(bias)) else {
                return Ok(None);
            };
            Ok(proof(memory, address)?.then_some(address))
        };
        Ok(Variables {
            mbuckets: at(self.mbuckets, is_mbuckets)?,
            mprof_cycle: at(self.mprof_cycle, is_cycle)?,
            mem_profile_rate: at(self.mem_profile_rate, is_rate)?,
            allgs: at(self.allgs, is_allgs)?,
            allm: at(self.allm, is_allm)?,
        })
    }
}

/// Whether what is at an address can be the variable. What a runtime that has not started yet has there can.
type Proof = fn(&dyn Memory, u64) -> Result<bool, GoError>;

fn references<'d, R: ReadRef<'d>>(image: &Image<'d, R>, table: &Pclntab, name: &str) -> Option<References> {
    let range = table.find(name)?;
    let is_code = image.segment(range.start)?.is_executable;
    if !is_code || range.end.checked_sub(range.start)? > MAX_FUNCTION {
        return None;
    }
    let begin = range.start;
    Some(References::of(&image.read(range).ok()?, begin))
}

/// `mProf_FlushLocked` walks the list, `stkbucket` takes the list's address.
fn mbuckets(flush: &References, make: &References) -> Option<u64> {
    flush.only(Access::Load8, |address| make.has(Access::Address, address))
}

/// `mProf_Malloc` reads the cycle, `mProf_Flush` reads it, and takes its address to change it.
fn mprof_cycle(malloc: &References, flush: &References) -> Option<u64> {
    malloc.only(Access::Load4, |address| {
        flush.has(Access::Load4, address) && flush.has(Access::Address, address)
    })
}

/// Both read the rate to choose the next sample.
fn mem_profile_rate(cache: &References, sample: &References) -> Option<u64> {
    cache.only(Access::Load8, |address| sample.has(Access::Load8, address))
}

/// `forEachG` reads the slice's pointer and length, `allgadd` stores all three words.
fn allgs(each: &References, add: &References) -> Option<u64> {
    let words = |address: u64| [0, 8, 16].map(|offset| address.wrapping_add(offset));
    each.only(Access::Load8, |address| {
        let is_read = words(address)[..2]
            .iter()
            .all(|word| each.has(Access::Load8, *word));
        is_read && words(address).iter().all(|word| add.has(Access::Store8, *word))
    })
}

/// `mexit` takes the list's address, `mcommoninit` does and reads it.
fn allm(exit: &References, init: &References) -> Option<u64> {
    exit.only(Access::Address, |address| {
        init.has(Access::Address, address) && init.has(Access::Load8, address)
    })
}

/// Whether the file's own value of a word is the default rate, or the file has none (`.bss`, as in Go 1.19).
fn begins_with_default<'d, R: ReadRef<'d>>(image: &Image<'d, R>, address: u64) -> bool {
    if image.segment(address).is_none() {
        return true;
    }
    let bytes = image.read(address..address.saturating_add(8));
    bytes.is_ok_and(|bytes| bytes == DEFAULT_RATE.to_le_bytes())
}

fn is_mbuckets(memory: &dyn Memory, address: u64) -> Result<bool, GoError> {
    let bucket = read_u64(memory, address)?;
    let (kind, field) = MEMORY_BUCKET;
    Ok(bucket == 0 || read_u64(memory, bucket.wrapping_add(field)).is_ok_and(|own| own == kind))
}

fn is_cycle(memory: &dyn Memory, address: u64) -> Result<bool, GoError> {
    Ok(read_u32(memory, address)? >> 1 < CYCLE_WRAP)
}

fn is_rate(memory: &dyn Memory, address: u64) -> Result<bool, GoError> {
    Ok(i64::try_from(read_u64(memory, address)?).is_ok())
}

fn is_allgs(memory: &dyn Memory, address: u64) -> Result<bool, GoError> {
    let slice = read_words(memory, address, 3)?;
    let [first, length, capacity] = slice[..] else {
        return Ok(false);
    };
    if length > capacity {
        return Ok(false);
    }
    let count = usize::try_from(length).unwrap_or(GOROUTINES).min(GOROUTINES);
    let refers_to_itself = |g: &u64| read_u64(memory, g.wrapping_add(G_SELF)).is_ok_and(|own| own == *g);
    let goroutines = read_words(memory, first, count);
    Ok(length == 0 || goroutines.is_ok_and(|goroutines| goroutines.iter().any(refers_to_itself)))
}

fn is_allm(memory: &dyn Memory, address: u64) -> Result<bool, GoError> {
    let m = read_u64(memory, address)?;
    let system = read_u64(memory, m);
    let own = system.and_then(|g| read_u64(memory, g.wrapping_add(G_M)));
    Ok(m == 0 || own.is_ok_and(|own| own == m))
}
