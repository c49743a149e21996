//! The line that shows on a terminal what goes on while tracing.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::text;

/// What the status line shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Since tracing began.
    pub elapsed: Duration,
    /// Bytes and blocks that live now, if the heap is traced.
    pub live: Option<(u64, u64)>,
    /// By how much the live bytes change in a minute, when there are two readings to tell from.
    pub change_per_minute: Option<i64>,
    /// Descriptors that are open now, if they are traced.
    pub open_fds: Option<u64>,
    /// Bytes that are mapped now, if mappings are traced.
    pub mapped_bytes: Option<u64>,
    /// Events that could not be recorded.
    pub not_recorded: u64,
    /// Whether the numbers of the heap are estimates from samples.
    pub is_estimate: bool,
}

impl Status {
    /// The line's text, without colour.
    pub fn text(&self) -> String {
        let mut text = text::duration(self.elapsed);
        if let Some(live) = self.live {
            text.push_str(&self.heap(live));
        }
        if let Some(open) = self.open_fds {
            text.push_str(&format!("  {}", text::counted(open, "fd", "fds")));
        }
        if let Some(mapped) = self.mapped_bytes {
            text.push_str(&format!("  {} mapped", text::bytes(mapped)));
        }
        if self.not_recorded > 0 {
            text.push_str(&format!(
                "  {} events not recorded",
                text::count(self.not_recorded)
            ));
        }
        text
    }

    fn heap(&self, (bytes, objects): (u64, u64)) -> String {
        let about = if self.is_estimate { "~" } else { "" };
        let (bytes, objects) = (text::bytes(bytes), text::count(objects));
        let change = self
            .change_per_minute
            .map(|change| format!("  {} per minute", text::change(change)));
        format!(
            "  live {about}{bytes} in {about}{objects} objects{}",
            change.unwrap_or_default()
        )
    }
}

/// The status line, on standard error. It costs nothing between updates.
#[derive(Clone, Debug)]
pub struct StatusLine(ProgressBar);

impl StatusLine {
    /// A line that shows only when it is not `quiet` and standard error is a terminal.
    pub fn new(quiet: bool) -> Self {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(
            ProgressStyle::with_template("{wide_msg}").expect("the template is a constant that parses"),
        );
        Self(bar)
    }

    /// Whether anybody sees it; when not, there is no need to gather a [`Status`].
    pub fn is_visible(&self) -> bool {
        !self.0.is_hidden()
    }

    /// Shows a new status.
    pub fn update(&self, status: &Status) {
        self.0.set_message(status.text());
        self.0.tick();
    }

    /// Clears the line while `print` writes something else to the terminal.
    pub fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.0.suspend(print)
    }

    /// Clears the line for good.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Status, StatusLine};

    #[test]
    fn what_the_line_says() {
        let mut status = Status {
            elapsed: Duration::from_millis(12_340),
            live: Some((31 << 20, 12_300)),
            ..Status::default()
        };
        assert_eq!(status.text(), "12.3 s  live 31.0 MiB in 12.3 k objects");
        status.change_per_minute = Some(-(3 << 20));
        status.not_recorded = 7;
        assert_eq!(
            status.text(),
            "12.3 s  live 31.0 MiB in 12.3 k objects  −3.0 MiB per minute  7 events not recorded"
        );
        status.is_estimate = true;
        assert!(status.text().contains("live ~31.0 MiB in ~12.3 k objects"));
    }

    #[test]
    fn only_what_is_traced_is_shown() {
        let mut status = Status {
            elapsed: Duration::from_secs(5),
            open_fds: Some(37),
            mapped_bytes: Some(12 << 20),
            ..Status::default()
        };
        assert_eq!(status.text(), "5.0 s  37 fds  12.0 MiB mapped");
        status.live = Some((1 << 20, 3));
        status.change_per_minute = Some(1 << 20);
        status.open_fds = Some(1);
        status.mapped_bytes = None;
        assert_eq!(
            status.text(),
            "5.0 s  live 1.0 MiB in 3 objects  +1.0 MiB per minute  1 fd"
        );
        assert_eq!(Status::default().text(), "0 ms");
    }

    #[test]
    fn a_quiet_line_is_not_seen() {
        let line = StatusLine::new(true);
        assert!(!line.is_visible());
        line.update(&Status::default());
        assert_eq!(line.suspend(|| 5), 5);
        line.finish();
    }
}
