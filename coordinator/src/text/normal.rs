//! Canonical composition (NFC), for models whose `tokenizer.json` asks for it.
//!
//! Must never cost a text that is composed already more than a look at it.

use std::borrow::Cow;

use tokenizers::NormalizedString;

/// `text` itself where nothing is wanted or to be done. Characters below U+0300 compose with nothing.
pub(super) fn composed(text: &str, wanted: bool) -> Cow<'_, str> {
    if !wanted || text.chars().all(|character| character < '\u{300}') {
        return Cow::Borrowed(text);
    }
    let mut normal = NormalizedString::from(text);
    normal.nfc();
    Cow::Owned(normal.get().to_owned())
}
