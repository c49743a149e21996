//! Readable names for mangled C++ and Rust symbols, bounded in size.
//!
//! A mangled name comes from the target and may expand exponentially (its substitutions refer to each other), so
//! what is written is cut off at [`MAX_NAME`].

use std::{borrow::Cow, fmt};

/// The longest name that is kept (bytes); what is longer ends in `…`.
pub(crate) const MAX_NAME: usize = 2048;

/// The readable form of a symbol's raw name.
///
/// C++ names lose their parameters and return type, Rust names their hash; glibc's `__GI_` (its prefix for the
/// hidden alias of a public function) is dropped. A name that is not mangled is returned as it is.
pub(crate) fn readable(raw: &str) -> Cow<'_, str> {
    // `@VERSION` and `@@VERSION` are added by linkers to versioned symbols.
    let raw = raw
        .split_once('@')
        .map_or(raw, |(name, _)| if name.is_empty() { raw } else { name });
    if let Some(public) = raw.strip_prefix("__GI_").filter(|public| !public.is_empty()) {
        return cut(public);
    }
    let demangled = rust(raw).or_else(|| cpp(raw));
    demangled.map_or_else(|| cut(raw), Cow::Owned)
}

fn rust(raw: &str) -> Option<String> {
    let name = rustc_demangle::try_demangle(raw).ok()?;
    Bounded::write(|out| fmt::Write::write_fmt(out, format_args!("{name:#}")))
}

fn cpp(raw: &str) -> Option<String> {
    if !raw.starts_with("_Z") {
        return None;
    }
    let symbol = cpp_demangle::Symbol::new(raw).ok()?;
    let options = cpp_demangle::DemangleOptions::new().no_params().no_return_type();
    Bounded::write(|out| symbol.structured_demangle(out, &options))
}

fn cut(name: &str) -> Cow<'_, str> {
    match name.char_indices().find(|(at, _)| *at >= MAX_NAME) {
        Some((at, _)) => Cow::Owned(format!("{}…", &name[..at])),
        None => Cow::Borrowed(name),
    }
}

/// A writer that refuses what goes beyond [`MAX_NAME`], and so stops the demangler.
#[derive(Default)]
struct Bounded {
    text: String,
    full: bool,
}

impl Bounded {
    /// What `write` wrote; `None` when it failed for a reason of its own or wrote nothing.
    fn write(write: impl FnOnce(&mut Self) -> fmt::Result) -> Option<String> {
        let mut out = Self::default();
        let result = write(&mut out);
        if out.full {
            out.text.push('…');
        } else if result.is_err() {
            return None;
        }
        (!out.text.is_empty()).then_some(out.text)
    }
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_NAME.saturating_sub(self.text.len());
        if text.len() <= room {
            self.text.push_str(text);
            return Ok(());
        }
        self.text.push_str(&text[..text.floor_char_boundary(room)]);
        self.full = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_NAME, readable};

    #[test]
    fn names_of_each_language() {
        for (raw, name) in [
            ("malloc", "malloc"),
            ("malloc@@GLIBC_2.2.5", "malloc"),
            ("__GI___libc_malloc", "__libc_malloc"),
            ("_ZN5cache5Store3putERKSsi", "cache::Store::put"),
            ("_Znwm", "operator new"),
            (
                "_ZNSt6vectorIiSaIiEE9push_backERKi",
                "std::vector<int, std::allocator<int> >::push_back",
            ),
            (
                "_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE",
                "core::fmt::Write::write_fmt",
            ),
            (
                "_RNvCskwGfYPst2Cb_3foo16example_function",
                "foo::example_function",
            ),
            ("_Zgarbage", "_Zgarbage"),
            ("main.(*T).Method", "main.(*T).Method"),
            ("", ""),
        ] {
            assert_eq!(readable(raw), name, "{raw}");
        }
    }

    #[test]
    fn a_name_that_explodes_is_cut() {
        // f<A<int, int>, B<A, A>, C<B, B>, …>: each type is twice as long as the one before it. The substitution that
        // stands for the type at `level` is number 2 * level + 2: `f` and each template's own name have numbers too.
        let mut raw = String::from("_Z1fI1AIiiE");
        for level in 1..25 {
            let before = in_base_36(2 * level - 1);
            raw.push_str(&format!(
                "1{}IS{before}_S{before}_E",
                char::from(b'A' + level as u8)
            ));
        }
        raw.push_str("Evv");
        let name = readable(&raw);
        assert!(
            name.starts_with("f<A<int, int>, B<A<int, int>, A<int, int> >, C<B<A<"),
            "{name}"
        );
        assert!(name.ends_with('…'), "{name}");
        assert!(name.len() <= MAX_NAME + '…'.len_utf8());
    }

    fn in_base_36(number: u32) -> String {
        let digit = |digit| char::from_digit(digit, 36).unwrap().to_ascii_uppercase();
        [number / 36, number % 36]
            .iter()
            .skip_while(|value| **value == 0)
            .map(|value| digit(*value))
            .collect()
    }

    #[test]
    fn a_long_plain_name_is_cut_between_characters() {
        let name = "ö".repeat(MAX_NAME);
        let cut = readable(&name);
        assert!(cut.ends_with("ö…") && cut.len() <= MAX_NAME + '…'.len_utf8());
    }
}
