//! Which program goes to which probe site, and what it is told there.

use std::{fs::File, iter};

use memtrace_ebpf::layout::{CallKind, entry, exit};

use super::attach::Point;
use crate::probe::{DialSites, InnerRole, Shape, Site};

/// What to attach for one allocation function.
pub(super) fn points<'a>(site: &Site, file: &'a File, floor: bool) -> Vec<Point<'a>> {
    if !site.inner.is_empty() {
        return inner_points(site, file, floor);
    }
    let (at_exit, leave) = match floor {
        true => ("floor", "floor_return"),
        false => ("leave_at_exit", "leave"),
    };
    let exits = site.exits.iter().map(|place| {
        let cookie = exit::cookie(place.slot, place.register, place.condition, place.returns);
        Point::at(at_exit, file, place.point.file_offset, cookie)
    });
    let (entry, cookie) = match floor {
        true => ("floor", 0),
        false => entry_program(site),
    };
    let entry = Point::at(entry, file, site.entry.file_offset, cookie);
    let returns = site.returns.as_ref();
    let returns = returns.map(|place| Point::at_return(leave, file, place));
    exits.chain(iter::once(entry)).chain(returns).collect()
}

/// Results first: a size that nothing follows is harmless, a result without its size is lost.
fn inner_points<'a>(site: &Site, file: &'a File, floor: bool) -> Vec<Point<'a>> {
    let roles = [InnerRole::Result, InnerRole::Size, InnerRole::Done];
    let of = |role| site.inner.iter().filter(move |inner| inner.role == role);
    roles
        .into_iter()
        .flat_map(of)
        .map(|inner| {
            let program = if floor { "floor" } else { inner_program(inner.role) };
            Point::at(program, file, inner.point.file_offset, u64::from(inner.slot))
        })
        .collect()
}

/// What to attach for the connections of Go's `net/http`. None of it at a return: Go moves stacks.
pub(super) fn dial_points<'a>(sites: &DialSites, file: &'a File) -> [Point<'a>; 2] {
    let places = [
        ("connection_dialed", &sites.dialed),
        ("connection_wanted", &sites.wanted),
    ];
    places.map(|(program, place)| Point::at(program, file, place.file_offset, sites.fields))
}

/// The program for a function's entry, and its cookie.
fn entry_program(site: &Site) -> (&'static str, u64) {
    if site.is_probed_at_exits() {
        return ("enter_described", entry_cookie(site));
    }
    let name = match (site.shape, site.moved) {
        (Shape::Free, _) => "enter_free",
        (Shape::Delete, _) => "enter_delete",
        (Shape::Malloc, None) => "enter_malloc",
        (Shape::Calloc, None) => "enter_calloc",
        (Shape::Realloc, None) => "enter_realloc",
        (Shape::ReallocArray, None) => "enter_reallocarray",
        (Shape::PosixMemalign, None) => "enter_posix_memalign",
        (Shape::Memalign, None) => "enter_memalign",
        _ => return ("enter_described", entry_cookie(site)),
    };
    (name, 0)
}

/// Where the arguments are, for the program that reads that from its cookie.
fn entry_cookie(site: &Site) -> u64 {
    let kind = match site.shape {
        Shape::Realloc | Shape::ReallocArray | Shape::HeapRealloc | Shape::HeapReallocArray => {
            CallKind::Realloc
        }
        Shape::Reallocf | Shape::HeapReallocf => CallKind::Reallocf,
        Shape::Xallocx => CallKind::InPlace,
        Shape::PosixMemalign => CallKind::Memalign,
        Shape::Malloc | Shape::Calloc | Shape::Memalign | Shape::HeapCalloc | Shape::Free | Shape::Delete => {
            CallKind::Block
        }
    };
    let places = site.places();
    let [size, count, pointer] =
        [places.size, places.count, places.pointer].map(|register| register.unwrap_or(entry::NONE));
    let exits = if site.is_probed_at_exits() {
        entry::EXITS
    } else {
        0
    };
    entry::cookie(kind, exits, size, count, pointer)
}

fn inner_program(role: InnerRole) -> &'static str {
    match role {
        InnerRole::Done => "inner_done",
        InnerRole::Size => "inner_size",
        InnerRole::Result => "inner_result",
    }
}
