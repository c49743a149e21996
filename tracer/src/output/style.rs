//! Colour and width.

use std::{borrow::Cow, fmt::Display};

use crate::{symbol::Line, text::printable};

/// How lines look (SGR codes of ECMA-48).
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) colour: bool,
    /// Columns.
    pub(super) width: usize,
}

impl Style {
    /// What the eye should find.
    pub(super) fn bold(self, text: impl Display) -> String {
        self.paint("1", text)
    }

    /// What it may pass over.
    pub(super) fn dim(self, text: impl Display) -> String {
        self.paint("2", text)
    }

    /// What is a reason to worry.
    pub(super) fn warn(self, text: impl Display) -> String {
        self.paint("33", text)
    }

    fn paint(self, code: &str, text: impl Display) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }
}

/// How many columns a text takes, as far as one character takes one.
pub(super) fn columns(text: &str) -> usize {
    text.chars().count()
}

/// A function's name in at most `width` columns, safe to print: template arguments go first, then the beginning.
pub(super) fn shorten(name: &str, width: usize) -> String {
    let name = printable(name);
    if columns(&name) <= width {
        return name.into_owned();
    }
    keep_end(&without_arguments(&name), width, "::")
}

/// `src/cache.cpp:120` in at most `width` columns, safe to print; empty when the file is not known.
pub(super) fn location(line: &Line, width: usize) -> String {
    let Some(file) = &line.file else {
        return String::new();
    };
    let file = printable(file);
    let place = if line.line == 0 {
        file
    } else {
        Cow::Owned(format!("{file}:{}", line.line))
    };
    keep_end(&place, width, "/")
}

/// The end of a text says more of a path or a qualified name than its beginning; it is cut before a separator, if there is
/// one.
pub(super) fn keep_end(text: &str, width: usize, separator: &str) -> String {
    let length = columns(text);
    if length <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().skip(length - width.saturating_sub(1)).collect();
    let whole_parts = kept.find(separator).unwrap_or(0);
    format!("…{}", &kept[whole_parts..])
}

/// `a<b<c>, d>::e` becomes `a<…>::e`. A leading `<`, as in Rust's `<T as Trait>::f`, and operators stay.
fn without_arguments(name: &str) -> String {
    let mut short = String::with_capacity(name.len());
    let mut depth = 0_usize;
    for (at, character) in name.char_indices() {
        let before = &name[..at];
        let is_operator =
            before.ends_with("operator") || before.ends_with("operator<") || before.ends_with('-');
        match character {
            '<' if at > 0 && !is_operator && !before.ends_with([' ', '(', '&']) => {
                if depth == 0 {
                    short.push_str("<…>");
                }
                depth += 1;
            }
            '<' if depth > 0 => depth += 1,
            '>' if depth > 0 && !is_operator => depth -= 1,
            _ if depth > 0 => {}
            _ => short.push(character),
        }
    }
    short
}

/// Joins words that [`wrap`] shall not part: a space in the end.
pub(super) const NO_BREAK: char = '\u{a0}';

/// Words in lines of at most `width` columns; every line but the first begins with `indent`.
pub(super) fn wrap(text: &str, width: usize, indent: &str) -> String {
    let mut wrapped = String::with_capacity(text.len() + 16);
    let mut column = 0;
    for word in text.split(' ') {
        let length = painted_columns(word);
        if column > 0 && column + 1 + length > width {
            wrapped.push('\n');
            wrapped.push_str(indent);
            column = columns(indent);
        } else if column > 0 {
            wrapped.push(' ');
            column += 1;
        }
        wrapped.push_str(word);
        column += length;
    }
    wrapped.replace(NO_BREAK, " ")
}

/// As [`wrap`], with breaks only behind commas and semicolons.
pub(super) fn wrap_list(text: &str, width: usize, indent: &str) -> String {
    let mut glued = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        let may_break = glued.ends_with([',', ';']);
        let is_glue = character == ' ' && !may_break;
        glued.push(if is_glue { NO_BREAK } else { character });
    }
    wrap(&glued, width, indent)
}

/// Lines of which all but the first are moved to the right.
pub(super) fn hang(lines: &str, columns: usize) -> String {
    lines.replace('\n', &format!("\n{:columns$}", ""))
}

/// How many columns a text takes that may be painted. What the target chose holds no escape character: it is printable.
fn painted_columns(text: &str) -> usize {
    let mut parts = text.split('\x1b');
    let first = parts.next().map_or(0, columns);
    let after_code = |part: &str| part.split_once('m').map_or(0, |(_, text)| columns(text));
    first + parts.map(after_code).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::{NO_BREAK, Style, hang, shorten, wrap, wrap_list};

    #[test]
    fn names_are_shortened_where_they_say_least() {
        let vector = "std::vector<int, std::allocator<int> >::push_back";
        assert_eq!(shorten(vector, 80), vector);
        assert_eq!(shorten(vector, 30), "std::vector<…>::push_back");
        assert_eq!(shorten(vector, 12), "…::push_back");
        assert_eq!(
            shorten("<store::Map<u8, u16> as Put>::put_all", 33),
            "<store::Map<…> as Put>::put_all"
        );
        assert_eq!(
            shorten("store::operator<< <char, int>", 28),
            "…::operator<< <char, int>"
        );
        assert_eq!(shorten("a\x1bb", 80), r"a\u{1b}b");
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("one two three four", 9, "  "), "one two\n  three\n  four");
        assert_eq!(wrap("unbreakable", 4, ""), "unbreakable");
        assert_eq!(wrap(&format!("a b{NO_BREAK}c"), 3, ""), "a\nb c");
        assert_eq!(wrap_list("1 of a, 2 of b; c d", 12, " "), "1 of a,\n 2 of b; c d");
        assert_eq!(hang("a\nb", 2), "a\n  b");
    }

    #[test]
    fn colour_takes_no_columns() {
        let style = Style {
            colour: true,
            width: 80,
        };
        let text = format!("one {} three", style.bold("two"));
        assert_eq!(wrap(&text, 7, ""), format!("one {}\nthree", style.bold("two")));
    }
}
