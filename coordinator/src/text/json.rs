//! Values as JSON, spelt as Python's `json.dumps` spells them: chat templates were written for that.
//!
//! Must never escape a character that JSON lets stand: not `<`, not `é`.

use std::io::{self, Write};

use minijinja::value::Value;
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// `value` on one line, or with `indent` spaces a level.
pub(super) fn dumped(value: &Value, indent: Option<usize>) -> Result<String, Error> {
    let mut out = Vec::new();
    let done = match indent {
        None => value.serialize(&mut Serializer::with_formatter(
            &mut out,
            Python { inner: CompactFormatter, line: true },
        )),
        Some(spaces) => {
            let spaces = " ".repeat(spaces);
            let inner = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, Python { inner, line: false }))
        }
    };
    let wrong = |error: String| Error::new(ErrorKind::BadSerialization, error);
    done.map_err(|error| wrong(error.to_string()))?;
    String::from_utf8(out).map_err(|error| wrong(error.to_string()))
}

struct Python<F> {
    inner: F,
    /// Everything on one line: a space behind each comma and colon.
    line: bool,
}

impl<F: Formatter> Formatter for Python<F> {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(number(value).as_bytes())
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if self.line && !first {
            return writer.write_all(b", ");
        }
        self.inner.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if self.line && !first {
            return writer.write_all(b", ");
        }
        self.inner.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.inner.end_object_value(writer)
    }
}

/// The shortest digits that give the number back, with an exponent from 1e16 up and below 1e-4.
fn number(value: f64) -> String {
    let short = format!("{value:e}");
    let Some((digits, exponent)) = short.split_once('e') else { return short };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => {
            let plain = value.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spelt_as_python_spells_them() {
        let all = [
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (1.5e-7, "1.5e-07"),
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (2.5, "2.5"),
            (123_456_789.125, "123456789.125"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-1.25e300, "-1.25e+300"),
            (5e-324, "5e-324"),
        ];
        for (value, wanted) in all {
            assert_eq!(number(value), wanted);
        }
    }
}
