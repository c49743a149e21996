//! How rows are laid out in pages.

use memtrace_ebpf::unwind::{CfaKind, PAGE_SHIFT, Page};

use super::fixtures::{Fixture, function};
use crate::unwind::{Limit, UnwindError, UnwindTable, rows::RowWriter, rule::Rule};

const PAGE: u64 = 1 << PAGE_SHIFT;

/// Two rules that differ from each other and from those of gaps.
const A: Rule = Rule::of_kind(CfaKind::End);
const B: Rule = Rule::of_kind(CfaKind::Signal);

/// Lays out `rules`, then a gap at `end`.
fn lay_out(rules: &[(u64, Rule)], end: u64) -> UnwindTable {
    let mut writer = RowWriter::new(rules[0].0..end).expect("the range is within the limits");
    for &(address, rule) in rules {
        writer.set(address, rule).expect("the rows are within the limits");
    }
    writer
        .set(end, Rule::NO_INFO)
        .expect("the rows are within the limits");
    let (rows, pages, base_page) = writer.finish();
    UnwindTable {
        rows,
        pages,
        base_page,
        ..UnwindTable::default()
    }
}

#[test]
fn a_rule_is_carried_over_page_borders() {
    let table = lay_out(&[(PAGE - 2, A), (3 * PAGE + 4, B)], 3 * PAGE + 6);
    assert_eq!(
        table.rows,
        [
            Rule::NO_INFO.at(0),
            A.at(0xfffe),
            A.at(0),
            A.at(0),
            A.at(0),
            B.at(4),
            Rule::NO_INFO.at(6),
        ]
    );
    let page = |start, count| Page { start, count };
    assert_eq!(table.pages, [page(0, 2), page(2, 1), page(3, 1), page(4, 3)]);
    assert_eq!(table.row_at(PAGE - 1), Some(A.at(0xfffe)));
    assert_eq!(table.row_at(2 * PAGE + 77), Some(A.at(0)));
    assert_eq!(table.row_at(3 * PAGE + 3), Some(A.at(0)));
    assert_eq!(table.row_at(3 * PAGE + 4), Some(B.at(4)));
    assert_eq!(table.row_at(4 * PAGE), None);
}

#[test]
fn rules_on_a_page_border_need_no_carried_row() {
    let table = lay_out(&[(PAGE, A), (2 * PAGE, B)], 3 * PAGE);
    assert_eq!(table.rows, [A.at(0), B.at(0)]);
    assert_eq!(
        table.pages.iter().map(|page| page.count).collect::<Vec<_>>(),
        [0, 1, 1]
    );
    assert_eq!(table.row_at(0), None);
    assert_eq!(table.row_at(3 * PAGE - 1), Some(B.at(0)));
}

#[test]
fn a_gap_of_several_pages_costs_no_rows() {
    let table = lay_out(
        &[(8, A), (16, Rule::NO_INFO), (100 * PAGE + 8, B)],
        100 * PAGE + 9,
    );
    assert_eq!(
        table.rows,
        [
            Rule::NO_INFO.at(0),
            A.at(8),
            Rule::NO_INFO.at(16),
            Rule::NO_INFO.at(0),
            B.at(8),
            Rule::NO_INFO.at(9)
        ]
    );
    assert_eq!(table.pages.len(), 101);
    assert_eq!(table.row_at(50 * PAGE), None);
}

#[test]
fn repeated_rules_make_one_row() {
    let table = lay_out(&[(0, A), (5, A), (9, B), (10, B)], 11);
    assert_eq!(table.rows, [A.at(0), B.at(9), Rule::NO_INFO.at(11)]);
}

#[test]
fn code_above_4_gib_moves_the_base() {
    let start = 0x7fff_0000_0000 + 3 * PAGE;
    let table = lay_out(&[(start + 1, A)], start + 2);
    assert_eq!(u64::from(table.base_page), start >> PAGE_SHIFT);
    assert_eq!(table.pages.len(), 1);
    assert_eq!(table.row_at(start + 1), Some(A.at(1)));
    assert_eq!(table.row_at(1), None);
}

#[test]
fn code_spread_over_more_than_the_limit_is_refused() {
    let result = RowWriter::new(0..Limit::Pages.max() * PAGE + PAGE);
    assert!(matches!(
        result,
        Err(UnwindError::TooLarge { limit: Limit::Pages })
    ));
}

/// A linked function that spans three pages, with a change of rule in the second.
#[test]
fn a_long_function_has_a_row_in_each_page() {
    let body = ".skip 0x10005, 0x90\n.cfi_def_cfa_offset 16\n.skip 0x10005, 0x90\nret";
    let Some(fixture) = Fixture::assemble(&function("f", body)) else {
        return;
    };
    let (table, start) = (fixture.table(), fixture.address("f"));
    let end = start + 2 * 0x10005 + 1;
    for address in [start, start + 0x10004, start + 0x10005, end - 1] {
        let expected = if address < start + 0x10005 { 1 } else { 2 };
        let row = table.row_at(address).expect("the function is described");
        assert_eq!(
            (row.cfa_kind, row.cfa_offset),
            (CfaKind::Sp as u8, expected),
            "at {address:#x}"
        );
    }
    for page in table.pages.iter().filter(|page| page.count > 0) {
        assert_eq!(table.rows[page.start as usize].pc_low, 0);
    }
    assert_eq!(table.pages.len() as u64, (end >> PAGE_SHIFT) + 1);
}
