//! The names of allocation functions, by the allocators that have them.
//!
//! Sources: C23 and POSIX; the Itanium C++ ABI (5.1) for the mangled operators; `jemalloc.h` (jemalloc 5.3),
//! `tcmalloc.h` (gperftools 2.10) and `mimalloc.h` (mimalloc 2.0 to 2.2).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::LazyLock,
};

use super::function::Shape;

/// The functions of C and POSIX, and what allocators commonly add. Each is also looked for behind every prefix.
const PLAIN: &[(&str, Shape)] = &[
    ("malloc", Shape::Malloc),
    ("calloc", Shape::Calloc),
    ("realloc", Shape::Realloc),
    ("reallocarray", Shape::ReallocArray),
    ("free", Shape::Free),
    ("cfree", Shape::Delete),
    ("free_sized", Shape::Delete),
    ("free_aligned_sized", Shape::Delete),
    ("posix_memalign", Shape::PosixMemalign),
    ("aligned_alloc", Shape::Memalign),
    ("memalign", Shape::Memalign),
    ("valloc", Shape::Malloc),
    ("pvalloc", Shape::Malloc),
    ("reallocf", Shape::Reallocf),
];

/// jemalloc's own functions, plain or behind its prefix.
const MALLOCX: &[(&str, Shape)] = &[
    ("mallocx", Shape::Malloc),
    ("rallocx", Shape::Realloc),
    ("xallocx", Shape::Xallocx),
    ("dallocx", Shape::Delete),
    ("sdallocx", Shape::Delete),
];

/// tcmalloc's names for the operators, behind `tc_`.
const TCMALLOC: &[(&str, Shape)] = &[
    ("malloc_skip_new_handler", Shape::Malloc),
    ("new", Shape::Malloc),
    ("new_nothrow", Shape::Malloc),
    ("newarray", Shape::Malloc),
    ("newarray_nothrow", Shape::Malloc),
    ("new_aligned", Shape::Malloc),
    ("new_aligned_nothrow", Shape::Malloc),
    ("newarray_aligned", Shape::Malloc),
    ("newarray_aligned_nothrow", Shape::Malloc),
    ("delete", Shape::Delete),
    ("delete_nothrow", Shape::Delete),
    ("delete_sized", Shape::Delete),
    ("delete_aligned", Shape::Delete),
    ("delete_sized_aligned", Shape::Delete),
    ("delete_aligned_nothrow", Shape::Delete),
    ("deletearray", Shape::Delete),
    ("deletearray_nothrow", Shape::Delete),
    ("deletearray_sized", Shape::Delete),
    ("deletearray_aligned", Shape::Delete),
    ("deletearray_sized_aligned", Shape::Delete),
    ("deletearray_aligned_nothrow", Shape::Delete),
];

/// mimalloc's own functions, behind `mi_`.
const MIMALLOC: &[(&str, Shape)] = &[
    ("malloc_small", Shape::Malloc),
    ("zalloc", Shape::Malloc),
    ("zalloc_small", Shape::Malloc),
    ("malloc_aligned", Shape::Malloc),
    ("malloc_aligned_at", Shape::Malloc),
    ("zalloc_aligned", Shape::Malloc),
    ("zalloc_aligned_at", Shape::Malloc),
    ("new", Shape::Malloc),
    ("new_nothrow", Shape::Malloc),
    ("new_aligned", Shape::Malloc),
    ("new_aligned_nothrow", Shape::Malloc),
    ("mallocn", Shape::Calloc),
    ("calloc_aligned", Shape::Calloc),
    ("calloc_aligned_at", Shape::Calloc),
    ("new_n", Shape::Calloc),
    ("expand", Shape::Realloc),
    ("rezalloc", Shape::Realloc),
    ("realloc_aligned", Shape::Realloc),
    ("realloc_aligned_at", Shape::Realloc),
    ("rezalloc_aligned", Shape::Realloc),
    ("rezalloc_aligned_at", Shape::Realloc),
    ("new_realloc", Shape::Realloc),
    ("reallocn", Shape::ReallocArray),
    ("recalloc", Shape::ReallocArray),
    ("recalloc_aligned", Shape::ReallocArray),
    ("recalloc_aligned_at", Shape::ReallocArray),
    ("new_reallocn", Shape::ReallocArray),
    ("free_size", Shape::Delete),
    ("free_size_aligned", Shape::Delete),
    ("free_aligned", Shape::Delete),
];

/// mimalloc's functions for one of several heaps, behind `mi_heap_`, and in version 3 also `mi_theap_`.
const MIMALLOC_HEAP: &[(&str, Shape)] = &[
    ("malloc", Shape::Memalign),
    ("malloc_small", Shape::Memalign),
    ("zalloc", Shape::Memalign),
    ("malloc_aligned", Shape::Memalign),
    ("malloc_aligned_at", Shape::Memalign),
    ("zalloc_aligned", Shape::Memalign),
    ("zalloc_aligned_at", Shape::Memalign),
    ("alloc_new", Shape::Memalign),
    ("calloc", Shape::HeapCalloc),
    ("mallocn", Shape::HeapCalloc),
    ("calloc_aligned", Shape::HeapCalloc),
    ("calloc_aligned_at", Shape::HeapCalloc),
    ("alloc_new_n", Shape::HeapCalloc),
    ("realloc", Shape::HeapRealloc),
    ("rezalloc", Shape::HeapRealloc),
    ("realloc_aligned", Shape::HeapRealloc),
    ("realloc_aligned_at", Shape::HeapRealloc),
    ("rezalloc_aligned", Shape::HeapRealloc),
    ("rezalloc_aligned_at", Shape::HeapRealloc),
    ("reallocn", Shape::HeapReallocArray),
    ("recalloc", Shape::HeapReallocArray),
    ("recalloc_aligned", Shape::HeapReallocArray),
    ("recalloc_aligned_at", Shape::HeapReallocArray),
    ("reallocf", Shape::HeapReallocf),
];

/// Prefixes of allocators that are built under names of their own: jemalloc (upstream, in Rust, in FreeBSD's C library),
/// tcmalloc, mimalloc, rpmalloc, Intel's oneTBB.
const PREFIXES: &[&str] = &[
    "je_",
    "_rjem_",
    "__rjem_",
    "__je_",
    "tc_",
    "mi_",
    "rp",
    "scalable_",
];

/// What follows `operator new` and `operator new[]` in a mangled name.
const NEW: &[&str] = &[
    "",
    "RKSt9nothrow_t",
    "St11align_val_t",
    "St11align_val_tRKSt9nothrow_t",
    "12__hot_cold_t",
    "RKSt9nothrow_t12__hot_cold_t",
    "St11align_val_t12__hot_cold_t",
    "St11align_val_tRKSt9nothrow_t12__hot_cold_t",
];

/// What follows `operator delete` and `operator delete[]`.
const DELETE: &[&str] = &[
    "",
    "m",
    "RKSt9nothrow_t",
    "mRKSt9nothrow_t",
    "St11align_val_t",
    "mSt11align_val_t",
    "St11align_val_tRKSt9nothrow_t",
    "mSt11align_val_tRKSt9nothrow_t",
];

/// Functions that belong together, for a person.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// `malloc` and its kin, behind a prefix, which may be empty.
    Malloc(String),
    /// C++'s operators.
    Operators,
    /// jemalloc's `mallocx` and its kin, behind a prefix.
    Mallocx(String),
    /// mimalloc's functions for one of several heaps.
    MiHeap,
}

/// What a name says of the function.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Known {
    /// What it does.
    pub shape: Shape,
    /// Where it belongs.
    pub family: Family,
    /// Position among all names, the plainest first: `free` before `_ZdlPv`.
    pub rank: usize,
}

/// The names to look for in one image.
pub(super) struct Names {
    /// By name, beside [`KNOWN`].
    own: HashMap<String, Known>,
    /// Prefixes that the user named.
    wanted: Vec<String>,
}

/// Every name that is known without looking at the image.
static KNOWN: LazyLock<HashMap<String, Known>> = LazyLock::new(|| {
    let mut known = HashMap::new();
    let first = 0;
    add_prefix(&mut known, first, "");
    for (operators, tails, shape) in [
        (["_Znwm", "_Znam"], NEW, Shape::Malloc),
        (["_ZdlPv", "_ZdaPv"], DELETE, Shape::Delete),
    ] {
        for (operator, tail) in operators
            .iter()
            .flat_map(|o| tails.iter().map(move |tail| (o, tail)))
        {
            add(
                &mut known,
                first,
                format!("{operator}{tail}"),
                shape,
                Family::Operators,
            );
        }
    }
    for prefix in PREFIXES {
        add_prefix(&mut known, first, prefix);
    }
    for (prefix, functions) in [("tc_", TCMALLOC), ("mi_", MIMALLOC)] {
        for (name, shape) in functions {
            add(
                &mut known,
                first,
                format!("{prefix}{name}"),
                *shape,
                Family::Malloc(prefix.to_owned()),
            );
        }
    }
    for heap in ["heap", "theap"] {
        for (name, shape) in MIMALLOC_HEAP {
            let name = format!("mi_{heap}_{name}");
            add(&mut known, first, name, *shape, Family::MiHeap);
        }
    }
    known
});

/// Ranks count from `first` on.
fn add(known: &mut HashMap<String, Known>, first: usize, name: String, shape: Shape, family: Family) {
    let rank = first + known.len();
    known.entry(name).or_insert(Known { shape, family, rank });
}

fn add_prefix(known: &mut HashMap<String, Known>, first: usize, prefix: &str) {
    for (name, shape) in PLAIN {
        add(
            known,
            first,
            format!("{prefix}{name}"),
            *shape,
            Family::Malloc(prefix.to_owned()),
        );
    }
    for (name, shape) in MALLOCX {
        add(
            known,
            first,
            format!("{prefix}{name}"),
            *shape,
            Family::Mallocx(prefix.to_owned()),
        );
    }
}

impl Names {
    /// The known names, those behind the prefixes that the user named, and those behind the prefixes with which the
    /// image defines a `mallocx`, as only jemalloc does.
    pub fn new<'a>(wanted: &[String], defined: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut own = HashMap::new();
        let found: BTreeSet<&str> = defined
            .filter_map(|name| name.strip_suffix(b"mallocx"))
            .filter_map(|prefix| std::str::from_utf8(prefix).ok())
            .collect();
        for prefix in wanted.iter().map(String::as_str).chain(found) {
            add_prefix(&mut own, KNOWN.len(), prefix);
        }
        Self {
            own,
            wanted: wanted.to_vec(),
        }
    }

    /// What this name says; a version (`malloc@@GLIBC_2.2.5`) is to be taken off before.
    pub fn get(&self, name: &str) -> Option<&Known> {
        KNOWN.get(name).or_else(|| self.own.get(name))
    }

    /// Of what an image defines, the families whose functions are an allocator's: those that allocate and those that free
    /// are both there, or the user says so. Plain names mean what the C standard says, whichever are there.
    ///
    /// C++'s operators are an allocator's own only beside one; elsewhere they call `malloc`, where the call is seen.
    pub fn families(&self, defined: &BTreeMap<&str, &Known>) -> BTreeSet<Family> {
        let prefixes: BTreeSet<&str> = defined
            .values()
            .filter_map(|known| known.family.prefix())
            .collect();
        let has = |prefix: &str, is_free: bool| {
            let mut known = defined.values();
            known.any(|known| known.family.prefix() == Some(prefix) && known.shape.is_free() == is_free)
        };
        let mut families = BTreeSet::new();
        for prefix in prefixes {
            let is_allocator =
                has(prefix, true) && has(prefix, false) || self.wanted.iter().any(|wanted| wanted == prefix);
            if is_allocator {
                families.insert(Family::Operators);
            }
            if is_allocator || prefix.is_empty() {
                families.insert(Family::Mallocx(prefix.to_owned()));
                families.insert(Family::Malloc(prefix.to_owned()));
            }
        }
        if families.contains(&Family::Malloc("mi_".to_owned())) {
            families.insert(Family::MiHeap);
        }
        families
    }
}

/// Whether this is a function of C that only allocates.
pub(super) fn is_plain_allocation(name: &str) -> bool {
    let plain = PLAIN.iter().find(|(plain, _)| *plain == name);
    plain.is_some_and(|(_, shape)| shape.is_served_by(Shape::Malloc))
}

impl Known {
    /// Whether the function of this name tells by an exception that there is no memory.
    pub fn throws(&self, name: &str) -> bool {
        let is_new = self.family == Family::Operators || name.contains("_new");
        is_new && !self.shape.is_free() && !name.contains("nothrow")
    }

    /// Whether only the right function can have this name, even one that no other file can see.
    pub fn is_unmistakable(&self) -> bool {
        self.family.prefix() != Some("")
    }
}

impl Family {
    /// What comes before the names, if they have that in common.
    fn prefix(&self) -> Option<&str> {
        match self {
            Self::Malloc(prefix) | Self::Mallocx(prefix) => Some(prefix),
            Self::Operators | Self::MiHeap => None,
        }
    }
}

impl Family {
    /// The family's name if `names` has its main functions, else the names.
    pub(super) fn describe(&self, names: &[&str]) -> String {
        let has = |prefix: &str, wanted: &[&str]| {
            let mut wanted = wanted.iter().map(|name| format!("{prefix}{name}"));
            wanted.any(|wanted| names.contains(&wanted.as_str()))
        };
        // A program that is linked statically has only those that it calls.
        const FEW: usize = 6;
        let begins = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
        match self {
            Self::Malloc(prefix)
                if has(prefix, &["malloc"]) && has(prefix, &["free"]) || names.len() > FEW =>
            {
                format!("{prefix}malloc family")
            }
            Self::Mallocx(prefix) if has(prefix, &["mallocx"]) && has(prefix, &["dallocx", "sdallocx"]) => {
                format!("{prefix}mallocx family")
            }
            Self::MiHeap if names.len() > FEW => "mi_heap_malloc family".to_owned(),
            Self::Operators => match (begins("_Zn"), begins("_Zd")) {
                (true, true) => "operator new/delete".to_owned(),
                (true, false) => "operator new".to_owned(),
                _ => "operator delete".to_owned(),
            },
            _ => names.join(", "),
        }
    }
}
