use super::{Part, excerpts, is_library};
use crate::symbol::{Line, is_allocator};

/// A stack from `function:line` words, innermost first.
fn stack(words: &str) -> Vec<Line> {
    let line = |word: &str| {
        let (function, line) = word.rsplit_once('@').unwrap_or((word, "0"));
        Line {
            function: function.into(),
            system_name: None,
            file: None,
            line: line.parse().unwrap(),
            column: 0,
        }
    };
    words.split(' ').map(line).collect()
}

/// What is shown of each stack, as words.
fn shown(stacks: &[&str]) -> Vec<String> {
    let stacks: Vec<Vec<Line>> = stacks.iter().map(|words| stack(words)).collect();
    let stacks: Vec<Vec<&Line>> = stacks.iter().map(|stack| stack.iter().collect()).collect();
    let stacks: Vec<&[&Line]> = stacks.iter().map(|stack| &**stack).collect();
    let part = |part: &Part<'_>| match part {
        Part::Frame(line) if line.line == 0 => line.function.to_string(),
        Part::Frame(line) => format!("{}@{}", line.function, line.line),
        Part::Gap(frames) => format!("…{frames}"),
    };
    let words = |excerpt: &super::Excerpt<'_>| excerpt.parts.iter().map(part).collect::<Vec<_>>().join(" ");
    excerpts(&stacks).iter().map(words).collect()
}

#[test]
fn allocators_and_starters_are_not_shown() {
    assert_eq!(
        shown(&["malloc fill main __libc_start_call_main __libc_start_main_impl _start"]),
        ["fill main"]
    );
    assert_eq!(shown(&["_int_malloc malloc operator_new"]), ["operator_new"]);
    assert_eq!(shown(&["malloc"]), ["malloc"]);
    assert_eq!(shown(&["[stack"]), ["[stack"]);
    assert_eq!(
        shown(&["malloc std::string::reserve std::string::append"]),
        ["std::string::reserve std::string::append"]
    );
}

#[test]
fn the_library_function_that_allocated_is_named_apart() {
    let lines = stack("malloc operator@1 std::allocate std::vector::push_back cache::put std::invoke main");
    let excerpt = &excerpts(&[&lines.iter().collect::<Vec<_>>()])[0];
    assert_eq!(excerpt.via, None, "`operator@1` is the program's own here");
    let lines = stack("malloc std::allocate std::vector::push_back cache::put std::invoke main");
    let excerpt = &excerpts(&[&lines.iter().collect::<Vec<_>>()])[0];
    assert_eq!(excerpt.via, Some("std::vector::push_back"));
    assert_eq!(excerpt.parts.len(), 2);
}

#[test]
fn shared_frames_give_way_to_those_that_differ() {
    let stacks = [
        "xmalloc@1 new_string@5 read_request@10 handle@20 loop@30 main@40",
        "xmalloc@1 new_string@5 write_reply@11 handle@21 loop@30 main@40",
        "xmalloc@1 new_list@6 index@12 compact@22 loop@30 main@40",
        "xmalloc@1 new_list@6 load@13 start@23 main@41",
    ];
    assert_eq!(
        shown(&stacks),
        [
            "xmalloc@1 new_string@5 read_request@10 handle@20 …2",
            "xmalloc@1 new_string@5 write_reply@11 handle@21 …2",
            "xmalloc@1 new_list@6 index@12 compact@22 …2",
            "xmalloc@1 new_list@6 load@13 start@23 main@41",
        ]
    );
}

#[test]
fn where_deep_stacks_part_is_always_shown() {
    let common: Vec<String> = (1..=40).map(|depth| format!("eval@{depth}")).collect();
    let common = common.join(" ");
    let stacks = [
        format!("alloc {common} left main"),
        format!("alloc {common} right main"),
    ];
    let stacks: Vec<&str> = stacks.iter().map(|words| &**words).collect();
    assert_eq!(
        shown(&stacks),
        [
            "alloc eval@1 eval@2 eval@3 eval@4 …36 left main",
            "alloc eval@1 eval@2 eval@3 eval@4 …36 right main",
        ]
    );
}

#[test]
fn whose_function_it_is() {
    for name in [
        "malloc",
        "__libc_malloc",
        "_int_malloc",
        "je_malloc",
        "_rjem_mallocx",
        "tc_calloc",
        "mi_malloc",
        "operator new",
        "operator new[]",
        "__rust_alloc",
        "__rdl_alloc",
        "__rustc::__rust_alloc",
    ] {
        assert!(is_allocator(name), "{name}");
    }
    for name in [
        "xmalloc",
        "malloc_stats_print_all",
        "zmalloc",
        "cache::malloc",
        "operator newest",
        "alloc_page",
    ] {
        assert!(!is_library(name), "{name}");
    }
    for name in [
        "std::vector<int>::push_back",
        "<alloc::string::String as core::clone::Clone>::clone",
        "<T as alloc::slice::hack::ConvertVec>::to_vec",
        "_start",
        "core::ops::function::FnOnce::call_once",
        "alloc::alloc::alloc",
        "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
        "__gnu_cxx::new_allocator<char>::allocate",
    ] {
        assert!(is_library(name), "{name}");
    }
    for name in [
        "<store::Item as core::clone::Clone>::clone",
        "main",
        "stdlib_init",
        "alloc",
        "core",
    ] {
        assert!(!is_library(name), "{name}");
    }
}
