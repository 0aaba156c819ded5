//! The parser against good, cut, damaged and hostile headers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use proptest::prelude::*;

use super::synthetic::{GgufWriter, SyntheticTensor, TinyLlama};
use super::*;

fn parse(bytes: &[u8]) -> Result<Gguf, GgufError> {
    Gguf::parse(bytes, bytes.len() as u64)
}

fn why(result: Result<Gguf, GgufError>) -> String {
    match result.unwrap_err() {
        GgufError::Bad(why) => why,
        GgufError::NeedBytes(bytes) => panic!("wants {bytes} bytes"),
    }
}

fn tiny() -> Vec<u8> {
    TinyLlama::default().writer().finish()
}

#[test]
fn every_kind_of_value() {
    let mut nested = 9u32.to_le_bytes().to_vec();
    nested.extend(2u64.to_le_bytes());
    for part in [[1i16, -2], [3, -4]] {
        nested.extend(3u32.to_le_bytes());
        nested.extend(2u64.to_le_bytes());
        part.iter().for_each(|number| nested.extend(number.to_le_bytes()));
    }
    let bytes = GgufWriter::default()
        .raw("u8", 0, &[200])
        .raw("i8", 1, &[200])
        .raw("u16", 2, &[0, 200])
        .raw("i16", 3, &[0, 200])
        .u32("u32", u32::MAX)
        .raw("i32", 5, &(-7i32).to_le_bytes())
        .f32("f32", 0.5)
        .bool("bool", true)
        .text("text", "añb")
        .raw("u64", 10, &u64::MAX.to_le_bytes())
        .raw("i64", 11, &i64::MIN.to_le_bytes())
        .raw("f64", 12, &0.1f64.to_le_bytes())
        .texts("texts", &["", "ab", "", "ć"])
        .i32s("ints", &[-1, 2])
        .raw("nested", 9, &nested)
        .finish();
    let gguf = parse(&bytes).unwrap();
    let get = |key: &str| gguf.metadata[key].clone();
    assert_eq!(get("u8"), Value::U64(200));
    assert_eq!(get("i8"), Value::I64(-56));
    assert_eq!(get("u16"), Value::U64(51200));
    assert_eq!(get("i16"), Value::I64(-14336));
    assert_eq!(get("u32"), Value::U64(u64::from(u32::MAX)));
    assert_eq!(get("i32"), Value::I64(-7));
    assert_eq!(get("f32"), Value::F64(0.5));
    assert_eq!(get("bool"), Value::Bool(true));
    assert_eq!(get("text").as_text(), Some("añb"));
    assert_eq!(get("u64"), Value::U64(u64::MAX));
    assert_eq!(get("i64"), Value::I64(i64::MIN));
    assert_eq!(get("f64"), Value::F64(0.1));
    let texts = get("texts");
    let texts = texts.as_texts().unwrap();
    assert_eq!(texts.iter().collect::<Vec<_>>(), ["", "ab", "", "ć"]);
    assert_eq!((texts.get(0), texts.get(3), texts.get(4)), (Some(""), Some("ć"), None));
    assert_eq!(get("ints"), Value::Ints(vec![-1, 2]));
    assert_eq!(get("nested"), Value::Array(vec![Value::Ints(vec![1, -2]), Value::Ints(vec![3, -4])]));
}

#[test]
fn tensors_lie_where_the_data_begins() {
    let bytes = tiny();
    let gguf = parse(&bytes).unwrap();
    assert_eq!(gguf.data_offset % 32, 0);
    assert_eq!(gguf.tensors[0].name, "token_embd.weight");
    assert_eq!(gguf.tensors[0].offset, gguf.data_offset);
    let last = gguf.tensors.last().unwrap();
    assert_eq!(last.offset + last.bytes, bytes.len() as u64);
    let norm = gguf.tensors.iter().find(|tensor| tensor.name == "blk.1.attn_norm.weight").unwrap();
    let wanted = synthetic::weights(&norm.name, &norm.dims, norm.kind, 1);
    assert_eq!(bytes[norm.offset as usize..][..norm.bytes as usize], wanted);
}

#[test]
fn a_short_prefix_asks_for_more_until_the_header_is_there() {
    let bytes = tiny();
    let header = parse(&bytes).unwrap().data_offset as usize;
    let mut have = 0;
    let mut asked = 0;
    let gguf = loop {
        match Gguf::parse(&bytes[..have], bytes.len() as u64) {
            Ok(gguf) => break gguf,
            Err(GgufError::NeedBytes(needed)) => {
                assert!(needed as usize > have && needed as usize <= header, "{needed} at {have}");
                have = needed as usize;
                asked += 1;
            }
            Err(bad) => panic!("{bad}"),
        }
    };
    assert_eq!(gguf, parse(&bytes).unwrap());
    assert!(asked > 10);
    // Wherever the reader happened to stop, it is never taken for a bad file.
    for have in (0..header).step_by(7) {
        match Gguf::parse(&bytes[..have], bytes.len() as u64) {
            Ok(gguf) => assert!(have + 32 > header, "{} tensors from {have} bytes", gguf.tensors.len()),
            Err(error) => assert!(matches!(error, GgufError::NeedBytes(_)), "{error} at {have}"),
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = tiny();
    for length in 0..bytes.len() {
        if length > 20_000 && length % 101 != 0 && length + 100 < bytes.len() {
            continue;
        }
        match parse(&bytes[..length]) {
            Err(GgufError::Bad(why)) => assert!(!why.is_empty()),
            other => panic!("{length} of {}: {other:?}", bytes.len()),
        }
    }
    assert!(parse(&bytes).is_ok());
}

#[test]
fn wrong_beginnings_are_named() {
    assert!(why(parse(b"PK\x03\x04 a zip file, not a model")).contains("not a GGUF file"));
    assert!(why(parse(b"")).contains("cut off"));
    let version = |version| parse(&GgufWriter { version, ..GgufWriter::default() }.finish());
    assert!(version(2).is_ok());
    assert!(why(version(1)).contains("version 1"));
    assert!(why(version(4)).contains("version 4"));
    assert!(why(version(3 << 24)).contains("big-endian"));
}

#[test]
fn counts_beyond_their_limits_are_refused_at_once() {
    let with = |at: usize, count: u64| {
        let mut bytes = tiny();
        bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
        parse(&bytes)
    };
    assert!(why(with(8, u64::MAX)).contains("tensors are more than the limit"));
    assert!(why(with(16, u64::MAX)).contains("metadata entries are more than the limit"));
    let array = |kind: u32, count: u64| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        parse(&GgufWriter::default().raw("array", 9, &bytes).finish())
    };
    for kind in 0..13 {
        assert!(why(array(kind, u64::MAX)).contains("\"array\""));
        assert!(why(array(kind, limits::GGUF_ARRAY_ENTRIES)).contains("cut off"));
    }
    assert!(why(array(13, 1)).contains("type 13"));
    let text = |length: u64| parse(&GgufWriter::default().raw("text", 8, &length.to_le_bytes()).finish());
    assert!(why(text(u64::MAX)).contains("longer than the limit"));
    assert!(why(text(1000)).contains("cut off"));
}

#[test]
fn a_huge_array_in_a_long_file_asks_for_its_bytes_and_not_for_memory() {
    let mut array = 8u32.to_le_bytes().to_vec();
    array.extend(limits::GGUF_ARRAY_ENTRIES.to_le_bytes());
    let bytes = GgufWriter::default().raw("array", 9, &array).finish();
    match Gguf::parse(&bytes, 1 << 40) {
        Err(GgufError::NeedBytes(needed)) => {
            assert_eq!(needed, bytes.len() as u64 + 8 * limits::GGUF_ARRAY_ENTRIES);
        }
        other => panic!("{other:?}"),
    }
    let mut text = (limits::GGUF_STRING_BYTES).to_le_bytes().to_vec();
    text.extend([b'a'; 10]);
    let bytes = GgufWriter::default().raw("text", 8, &text).finish();
    assert!(matches!(Gguf::parse(&bytes, 1 << 40), Err(GgufError::NeedBytes(_))));
}

#[test]
fn a_header_over_the_limit_is_refused() {
    // 63 strings of 4 MiB fit below 256 MiB; the file claims more of them than may be.
    let mut array = 8u32.to_le_bytes().to_vec();
    array.extend(100u64.to_le_bytes());
    let part = vec![b'x'; limits::GGUF_STRING_BYTES as usize];
    for _ in 0..64 {
        array.extend(limits::GGUF_STRING_BYTES.to_le_bytes());
        array.extend(&part);
    }
    let bytes = GgufWriter::default().raw("array", 9, &array).finish();
    assert!(why(Gguf::parse(&bytes, 1 << 40)).contains("header is larger"));
}

#[test]
fn bad_values_are_named() {
    let text = |bytes: &[u8]| {
        let mut with_length = (bytes.len() as u64).to_le_bytes().to_vec();
        with_length.extend(bytes);
        why(parse(&GgufWriter::default().raw("the.key", 8, &with_length).finish()))
    };
    assert!(text(&[0xff]).contains("\"the.key\": a string is not UTF-8"));
    assert!(why(parse(&GgufWriter::default().raw("flag", 7, &[2]).finish())).contains("truth value of 2"));
    let twice = GgufWriter::default().u32("k", 1).raw_again("k", 4, &[0; 4]).finish();
    assert!(why(parse(&twice)).contains("\"k\" is there twice"));
    let mut deep = Vec::new();
    for _ in 0..40 {
        deep.extend(9u32.to_le_bytes());
        deep.extend(1u64.to_le_bytes());
    }
    assert!(why(parse(&GgufWriter::default().raw("deep", 9, &deep).finish())).contains("nested deeper"));
}

#[test]
fn arrays_share_one_budget() {
    let count = limits::GGUF_ARRAY_ENTRIES / 2 + 1;
    let mut array = 0u32.to_le_bytes().to_vec();
    array.extend(count.to_le_bytes());
    array.resize(array.len() + count as usize, 7);
    let one = GgufWriter::default().raw("a", 9, &array);
    assert!(parse(&one.finish()).is_ok());
    assert!(why(parse(&one.raw("b", 9, &array).finish())).contains("for all arrays"));
}

#[test]
fn bad_tensors_are_named() {
    let edit = |edit: fn(&mut SyntheticTensor)| {
        why(parse(&TinyLlama::default().writer().edit_tensor("blk.0.attn_q.weight", edit).finish()))
    };
    let named = |error: String, what: &str| {
        assert!(error.contains("blk.0.attn_q") && error.contains(what), "{error}")
    };
    named(edit(|tensor| tensor.kind = 20), "type 20 is not supported");
    named(edit(|tensor| tensor.dims = vec![]), "0 dimensions");
    named(edit(|tensor| tensor.dims = vec![1; 5]), "5 dimensions");
    named(edit(|tensor| tensor.dims = vec![64, 0]), "impossible dimensions");
    named(edit(|tensor| tensor.dims = vec![1 << 32, 1 << 32]), "impossible dimensions");
    named(edit(|tensor| tensor.dims = vec![1 << 62]), "beyond the end");
    named(edit(|tensor| tensor.dims = vec![33, 2]), "no multiple of the Q8_0 block of 32");
    named(edit(|tensor| tensor.offset = Some(1)), "not aligned");
    named(edit(|tensor| tensor.offset = Some(u64::MAX - 31)), "beyond the end");
    named(edit(|tensor| tensor.offset = Some(0)), "overlap");
    let again = |tensor: &mut SyntheticTensor| tensor.name = "token_embd.weight".to_owned();
    let twice = TinyLlama::default().writer().edit_tensor("blk.0.attn_q.weight", again).finish();
    assert!(why(parse(&twice)).contains("\"token_embd.weight\" is there twice"));
    let long = |tensor: &mut SyntheticTensor| tensor.name = "x".repeat(65);
    let long = TinyLlama::default().writer().edit_tensor("token_embd.weight", long).finish();
    assert!(why(parse(&long)).contains("tensor 0"));
}

#[test]
fn alignment_is_a_power_of_two() {
    let aligned = |alignment: u32| {
        let writer = TinyLlama::default().writer().u32("general.alignment", alignment);
        parse(&GgufWriter { alignment: alignment as usize, ..writer }.finish())
    };
    for alignment in [1u32, 8, 64, 4096] {
        assert_eq!(aligned(alignment).unwrap().data_offset % u64::from(alignment), 0);
    }
    for alignment in [0u32, 3, 48, 1 << 20] {
        let writer = TinyLlama::default().writer().u32("general.alignment", alignment);
        assert!(why(parse(&writer.finish())).contains("general.alignment"));
    }
    let text = TinyLlama::default().writer().text("general.alignment", "32").finish();
    assert!(why(parse(&text)).contains("general.alignment"));
}

/// Whatever `parse` accepts keeps its promises.
fn check(bytes: &[u8], file_bytes: u64) {
    match Gguf::parse(bytes, file_bytes) {
        Ok(gguf) => {
            let mut spans: Vec<_> =
                gguf.tensors.iter().map(|tensor| (tensor.offset, tensor.offset + tensor.bytes)).collect();
            spans.sort_unstable();
            assert!(spans.iter().all(|span| span.0 >= gguf.data_offset && span.1 <= file_bytes));
            assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            let config = gguf.config();
            let digests = vec![Digest([1; 32]); gguf.tensors.len()];
            let spec = gguf.spec("m", Digest([0; 32]), &digests, Digest([2; 32]));
            assert_eq!(config.is_ok(), spec.is_ok());
            assert!(config.map_or_else(|error| error.to_string().len(), |_| 1) < 2_000);
            if let Ok(spec) = spec {
                let whole = crate::plan::Slice { first: 0, end: spec.config.layers };
                assert_eq!(spec.tensors_of(whole).count(), gguf.tensors.len());
            }
        }
        Err(GgufError::NeedBytes(needed)) => {
            assert!(
                needed > bytes.len() as u64 && needed <= file_bytes && needed <= limits::GGUF_HEADER_BYTES
            );
        }
        Err(GgufError::Bad(why)) => assert!(!why.is_empty() && why.len() < 2_000),
    }
}

fn header() -> Vec<u8> {
    let small = TinyLlama { layers: 1, ..TinyLlama::default() };
    let bytes = small.writer().finish();
    let header = parse(&bytes).unwrap().data_offset as usize;
    bytes[..header].to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn flipped_bits_are_an_error_or_a_consistent_header(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..8),
        cut in any::<prop::sample::Index>(),
        shorten: bool,
    ) {
        let mut bytes = header();
        let file_bytes = bytes.len() as u64 + 200_000;
        for (index, bit) in flips {
            let at = index.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if shorten {
            bytes.truncate(cut.index(bytes.len()));
        }
        check(&bytes, file_bytes);
        check(&bytes, bytes.len() as u64);
    }

    #[test]
    fn overlong_numbers_are_an_error_or_a_consistent_header(
        at in any::<prop::sample::Index>(),
        number in prop_oneof![
            Just(u64::MAX), Just(i64::MAX as u64), Just(u64::MAX - 31), Just(1 << 32), Just(1 << 40),
            Just(limits::GGUF_ARRAY_ENTRIES), Just(limits::GGUF_STRING_BYTES), any::<u64>(), 0u64..10_000
        ],
        near_the_front: bool,
    ) {
        let mut bytes = header();
        let span = if near_the_front { 900 } else { bytes.len() - 8 };
        let at = at.index(span);
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        check(&bytes, bytes.len() as u64 + 200_000);
        check(&bytes, 1 << 45);
    }

    #[test]
    fn noise_behind_the_magic_is_an_error(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(noise);
        check(&bytes, bytes.len() as u64);
        check(&bytes, 1 << 30);
    }
}
