use super::{Part, Stack, excerpts, is_library};
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

fn whole<'s, 'a>(lines: &'s [&'a Line]) -> Stack<'s, 'a> {
    Stack { lines, wrappers: 0 }
}

/// What is shown of each stack, as words.
fn shown(stacks: &[&str]) -> Vec<String> {
    let stacks: Vec<Vec<Line>> = stacks.iter().map(|words| stack(words)).collect();
    let stacks: Vec<Vec<&Line>> = stacks.iter().map(|stack| stack.iter().collect()).collect();
    let stacks: Vec<Stack<'_, '_>> = stacks.iter().map(|lines| whole(lines)).collect();
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
    let excerpt = &excerpts(&[whole(&lines.iter().collect::<Vec<_>>())])[0];
    assert_eq!(excerpt.via, None, "`operator@1` is the program's own here");
    let lines = stack("malloc std::allocate std::vector::push_back cache::put std::invoke main");
    let excerpt = &excerpts(&[whole(&lines.iter().collect::<Vec<_>>())])[0];
    assert_eq!(excerpt.via, Some("std::vector::push_back"));
    assert_eq!(excerpt.parts.len(), 2);
}

#[test]
fn wrappers_of_system_calls_give_way_to_their_callers() {
    let excerpt = |words: &str, wrappers| {
        let lines = stack(words);
        let lines: Vec<&Line> = lines.iter().collect();
        let stack = Stack {
            lines: &lines,
            wrappers,
        };
        let excerpt = &excerpts(&[stack])[0];
        let first = stack.first_own().map(|line| line.function.to_string());
        (excerpt.via.map(str::to_owned), first.unwrap())
    };
    let some = |via: &str, first: &str| (Some(via.to_owned()), first.to_owned());
    assert_eq!(excerpt("open64 log_open main", 1), some("open64", "log_open"));
    assert_eq!(
        excerpt("open64 _IO_file_open fopen64 std::open log_open main", 3),
        some("std::open", "log_open")
    );
    assert_eq!(excerpt("brk sbrk malloc fill main", 3), some("malloc", "fill"));
    // Nothing but the C library: the wrapper is the best there is.
    assert_eq!(
        excerpt("mmap64 start_thread clone3", 3),
        (None, "mmap64".to_owned())
    );
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
