//! Lays rules out as rows, page by page.

use std::ops::Range;

use memtrace_ebpf::unwind::{PAGE_SHIFT, Page, Row};

use super::{Limit, UnwindError, rule::Rule};

/// The first page that makes a table start elsewhere than at address 0 (4 GiB).
const FIRST_FAR_PAGE: u64 = 1 << (32 - PAGE_SHIFT);

/// Takes rules in ascending order of address, drops repetitions, and starts each page with the rule in force.
pub(super) struct RowWriter {
    rows: Vec<Row>,
    pages: Vec<Page>,
    base_page: u32,
    in_force: Rule,
}

impl RowWriter {
    /// A writer for code in this range of virtual addresses.
    pub fn new(addresses: Range<u64>) -> Result<Self, UnwindError> {
        let lowest = addresses.start >> PAGE_SHIFT;
        let base = if lowest < FIRST_FAR_PAGE { 0 } else { lowest };
        Limit::Pages.check((addresses.end >> PAGE_SHIFT).saturating_sub(base))?;
        let base_page = u32::try_from(base).map_err(|_| UnwindError::TooLarge { limit: Limit::Pages })?;
        Ok(Self {
            rows: Vec::new(),
            pages: Vec::new(),
            base_page,
            in_force: Rule::NO_INFO,
        })
    }

    /// From `address` on, `rule` holds. Addresses must ascend and lie in the writer's range, its end included.
    pub fn set(&mut self, address: u64, rule: Rule) -> Result<(), UnwindError> {
        if rule == self.in_force {
            return Ok(());
        }
        let pc_low = address as u16;
        let page = (address >> PAGE_SHIFT).saturating_sub(u64::from(self.base_page)) as usize;
        while self.pages.len() < page {
            self.open_page();
            if self.in_force != Rule::NO_INFO {
                self.push(0, self.in_force);
            }
        }
        let in_force = std::mem::replace(&mut self.in_force, rule);
        if self.pages.len() == page {
            if pc_low == 0 && rule == Rule::NO_INFO {
                return Ok(());
            }
            self.open_page();
            if pc_low != 0 {
                self.push(0, in_force);
            }
        }
        self.push(pc_low, rule);
        Limit::Rows.check(self.rows.len() as u64)
    }

    fn open_page(&mut self) {
        self.pages.push(Page {
            start: self.rows.len() as u32,
            count: 0,
        });
    }

    fn push(&mut self, pc_low: u16, rule: Rule) {
        self.rows.push(rule.at(pc_low));
        if let Some(page) = self.pages.last_mut() {
            page.count += 1;
        }
    }

    /// The rows, the pages, and which page is the first.
    pub fn finish(mut self) -> (Vec<Row>, Vec<Page>, u32) {
        self.rows.shrink_to_fit();
        self.pages.shrink_to_fit();
        (self.rows, self.pages, self.base_page)
    }
}
