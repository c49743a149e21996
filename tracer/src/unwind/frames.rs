//! Walks the entries of `.eh_frame` and evaluates each frame description.

use std::ops::Range;

use gimli::{
    BaseAddresses, CommonInformationEntry, EhFrame, EhFrameOffset, FrameDescriptionEntry, UnwindContext,
    UnwindSection as _, X86_64,
};

use super::{
    Limit, TableStats, UnwindError,
    elf::Image,
    entries::{Entries, Entry},
    rows::RowWriter,
    rule::{Rule, Slice, Storage},
};

/// How long the code at a file's entry is at most, if nothing describes it (glibc's `_dl_start_user` ends 0x3d bytes after it).
const ENTRY_BYTES: u64 = 0x60;

/// The frame descriptions of one file, in ascending order of the code they describe.
pub(super) struct Frames<'d> {
    section: EhFrame<Slice<'d>>,
    bases: BaseAddresses,
    /// Each with its offset in the section, ascending.
    cies: Vec<(usize, CommonInformationEntry<Slice<'d>>)>,
    fdes: Vec<Fde>,
    /// Where the kernel lets the file begin (virtual address).
    entry: u64,
    /// Code that keeps frame pointers, where no description covers it (virtual addresses); empty if there is none.
    with_frame_pointers: Range<u64>,
}

/// A frame description, to be read again when its turn comes.
struct Fde {
    /// First address of its code (virtual address).
    start: u64,
    /// One past the last (virtual address).
    end: u64,
    /// Where it is in the section (bytes).
    offset: usize,
}

impl<'d> Frames<'d> {
    /// Reads all entries, but none of their instructions.
    pub fn collect(
        image: &Image<'d>,
        with_frame_pointers: Range<u64>,
        stats: &mut TableStats,
    ) -> Result<Self, UnwindError> {
        let mut frames = Self {
            section: image.section(),
            bases: image.bases.clone(),
            cies: Vec::new(),
            fdes: Vec::new(),
            entry: image.entry,
            with_frame_pointers,
        };
        let mut work = 0_u64;
        let mut entries = Entries::new(image.eh_frame, image.zero_terminated);
        for entry in &mut entries {
            match entry {
                Entry::Cie(offset) => match frames
                    .section
                    .cie_from_offset(&frames.bases, EhFrameOffset(offset))
                {
                    Ok(cie) => frames.cies.push((offset, cie)),
                    Err(_) => stats.malformed += 1,
                },
                Entry::Fde(offset) => match frames.fde(offset) {
                    Ok(fde) => {
                        work = work.saturating_add((fde.entry_len() + fde.cie().entry_len()) as u64);
                        frames.add(&fde, &image.executable, stats);
                    }
                    Err(_) => stats.malformed += 1,
                },
            }
            Limit::Cies.check(frames.cies.len() as u64)?;
            Limit::Fdes.check(frames.fdes.len() as u64)?;
        }
        stats.malformed += u32::from(entries.is_damaged());
        Limit::Work.check(work / image.eh_frame.len().max(1) as u64)?;
        frames.fdes.sort_by_key(|fde| (fde.start, fde.offset));
        Ok(frames)
    }

    /// The lowest address that is described, and one past the highest.
    pub fn address_range(&self) -> Range<u64> {
        let lowest = self.fdes.first().map_or(0, |fde| fde.start);
        let highest = self.fdes.iter().map(|fde| fde.end).max().unwrap_or(0);
        match self.with_frame_pointers.is_empty() {
            true => lowest..highest,
            false => lowest.min(self.with_frame_pointers.start)..highest.max(self.with_frame_pointers.end),
        }
    }

    /// Evaluates every description. Where two overlap, the one that starts last holds, as in a binary search.
    pub fn write_rows(&self, writer: &mut RowWriter, stats: &mut TableStats) -> Result<(), UnwindError> {
        let mut context = Box::new(UnwindContext::new_in());
        let mut covered_to = 0;
        for (i, fde) in self.fdes.iter().enumerate() {
            let next_start = self.fdes.get(i + 1).map_or(u64::MAX, |next| next.start);
            let end = fde.end.min(next_start);
            if end < fde.end {
                stats.overlapping_fdes += 1;
            }
            if end == fde.start {
                continue;
            }
            if fde.start > covered_to {
                self.write_gap(covered_to, fde.start, writer)?;
                // Nobody calls what is there: glibc's dynamic linker has no description of it.
                if self.entry != 0 && (covered_to..fde.start).contains(&self.entry) {
                    writer.set(self.entry, Rule::END)?;
                    let end = self.entry.saturating_add(ENTRY_BYTES);
                    if end < fde.start {
                        writer.set(end, Rule::NO_INFO)?;
                    }
                }
            }
            if !self.write_fde(fde, end, writer, &mut context)? {
                stats.malformed += 1;
            }
            stats.fdes += 1;
            covered_to = end;
        }
        self.write_gap(covered_to, u64::MAX, writer)
    }

    /// Writes the rows of code that no description covers.
    fn write_gap(&self, begin: u64, end: u64, writer: &mut RowWriter) -> Result<(), UnwindError> {
        writer.set(begin, Rule::NO_INFO)?;
        let from = self.with_frame_pointers.start.max(begin);
        let to = self.with_frame_pointers.end.min(end);
        if from < to {
            writer.set(from, Rule::FRAME_POINTER)?;
            if to < end {
                writer.set(to, Rule::NO_INFO)?;
            }
        }
        Ok(())
    }

    /// Writes the rows of one description up to `end`; `false` if it is damaged and the rest is unsupported.
    fn write_fde(
        &self,
        fde: &Fde,
        end: u64,
        writer: &mut RowWriter,
        context: &mut UnwindContext<usize, Storage>,
    ) -> Result<bool, UnwindError> {
        let mut covered_to = fde.start;
        if let Ok(parsed) = self.fde(fde.offset)
            && parsed.cie().return_address_register() == X86_64::RA
            && let Ok(mut lines) = parsed.rows(&self.section, &self.bases, context)
        {
            // Each line begins where the one before ended, the first at the description's start.
            while let Ok(Some(line)) = lines.next_row() {
                let line_end = line.end_address().min(end);
                if line_end > covered_to {
                    let rule = Rule::of_line(line, parsed.is_signal_trampoline(), &self.section);
                    writer.set(covered_to, rule)?;
                    covered_to = line_end;
                }
            }
        }
        if covered_to < end {
            writer.set(covered_to, Rule::UNSUPPORTED)?;
        }
        Ok(covered_to == end)
    }

    /// Notes a description, cut to the executable segment that it starts in.
    fn add(
        &mut self,
        fde: &FrameDescriptionEntry<Slice<'d>>,
        executable: &[(u64, u64)],
        stats: &mut TableStats,
    ) {
        let start = fde.initial_address();
        let segment_end = executable
            .iter()
            .find(|(first, end)| (*first..*end).contains(&start))
            .map(|range| range.1);
        match segment_end {
            Some(segment_end) if fde.len() > 0 => {
                let end = start.saturating_add(fde.len()).min(segment_end);
                self.fdes.push(Fde {
                    start,
                    end,
                    offset: fde.offset(),
                });
            }
            _ => stats.dropped_fdes += 1,
        }
    }

    /// The description at this offset of the section.
    fn fde(&self, offset: usize) -> gimli::Result<FrameDescriptionEntry<Slice<'d>>> {
        self.section
            .fde_from_offset(&self.bases, EhFrameOffset(offset), |_, _, EhFrameOffset(cie)| {
                // Only entries that were met before: so a CIE is read once, and never from the middle of another entry.
                let index = self.cies.binary_search_by_key(&cie, |(offset, _)| *offset);
                let index = index.map_err(|_| gimli::Error::NotCieId(cie as u64))?;
                Ok(self.cies[index].1.clone())
            })
    }
}
