//! Schemas of all kinds from a number: objects, arrays, strings with patterns and formats, bounded
//! numbers, constants, alternatives, definitions that refer to themselves.
//!
//! Must never make a schema that no value fits: every test of it would be void.

use serde_json::{Map, Value, json};

/// A counter-based generator.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// 0 to `below`, without it.
    fn below(&mut self, below: u64) -> u64 {
        self.next() % below
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }

    /// 0 to 1.
    pub fn share(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
}

const NAMES: [&str; 12] = [
    "id",
    "name",
    "größe",
    "tags",
    "a b",
    "nested",
    "x-y",
    "\"quoted\"",
    "value",
    "kind",
    "日本",
    "back\\slash",
];
const PATTERNS: [&str; 7] = [
    "^[a-z]{2,5}$",
    "^(red|green|blue)$",
    "^\\d{3}-\\d{4}$",
    "^[A-Z][a-z]*( [A-Z][a-z]*){0,2}$",
    "^$|^none$",
    "[0-9]",
    "^[^\\s]{1,8}$",
];
const FORMATS: [&str; 9] =
    ["date", "date-time", "time", "duration", "email", "ipv4", "ipv6", "uuid", "hostname"];

/// The schema of this number.
pub fn schema(seed: u64) -> Value {
    let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let mut top = match random.below(4) {
        0 => any(&mut random, 3),
        _ => object(&mut random, 3),
    };
    if let Some(map) = top.as_object_mut() {
        map.insert("$defs".into(), definitions(&mut random));
        if random.one_in(2) {
            map.insert("title".into(), json!("generated"));
            map.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
        }
    }
    top
}

/// A list that may go on and a tree, which refer to themselves, and a plain one.
fn definitions(random: &mut Random) -> Value {
    let payload = leaf(random);
    json!({
        "list": {"type": "object", "properties": {"head": payload, "rest": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]}},
            "required": ["head", "rest"], "additionalProperties": false},
        "tree": {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}},
            "required": ["children"], "additionalProperties": false},
        "plain": leaf(random),
    })
}

fn any(random: &mut Random, depth: u64) -> Value {
    if depth == 0 {
        return leaf(random);
    }
    match random.below(10) {
        0..=2 => object(random, depth - 1),
        3..=4 => array(random, depth - 1),
        5 => {
            let options: Vec<Value> = (0..2 + random.below(2)).map(|_| any(random, depth - 1)).collect();
            json!({"anyOf": options})
        }
        6 => json!({"$ref": format!("#/$defs/{}", random.pick(&["list", "tree", "plain"]))}),
        _ => leaf(random),
    }
}

fn object(random: &mut Random, depth: u64) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for _ in 0..random.below(5) {
        let name = *random.pick(&NAMES);
        if properties.contains_key(name) {
            continue;
        }
        properties.insert(name.into(), any(random, depth));
        if random.below(3) > 0 {
            required.push(name);
        }
    }
    let mut schema = json!({"type": "object", "properties": properties, "required": required});
    match random.below(6) {
        0 => {}
        1 => schema["additionalProperties"] = leaf(random),
        _ => schema["additionalProperties"] = json!(false),
    }
    if random.one_in(6) {
        let extra = json!({"type": "object", "properties": {"all": leaf(random)}, "required": ["all"]});
        // Both parts must leave the other's properties alone.
        schema["additionalProperties"] = json!(true);
        return json!({"allOf": [schema, extra]});
    }
    schema
}

fn array(random: &mut Random, depth: u64) -> Value {
    let least = random.below(3);
    let mut schema = json!({"type": "array", "items": any(random, depth), "minItems": least});
    if random.one_in(2) {
        schema["maxItems"] = json!(least + random.below(3));
    }
    if random.one_in(4) {
        schema["prefixItems"] = json!([leaf(random), leaf(random)]);
    }
    schema
}

fn leaf(random: &mut Random) -> Value {
    match random.below(12) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => json!({"enum": ["a", "b\"c", 3, null, {"k": [1]}]}),
        3 => json!({"const": random.pick(&[json!("fixed"), json!(17), json!([1, "x"]), json!(false)])}),
        4 | 5 => number(random, "integer"),
        6 => number(random, "number"),
        7 => json!({"type": "string", "pattern": random.pick(&PATTERNS)}),
        8 => json!({"type": "string", "format": random.pick(&FORMATS)}),
        9 => json!({"type": ["string", "null"]}),
        10 => {
            let least = random.below(4);
            json!({"type": "string", "minLength": least, "maxLength": least + random.below(6)})
        }
        _ => json!({"type": "string"}),
    }
}

fn number(random: &mut Random, kind: &str) -> Value {
    let low = random.below(2_000) as i64 - 1_000;
    let high = low + random.below(500) as i64 + 20;
    match random.below(5) {
        0 => json!({"type": kind}),
        1 => json!({"type": kind, "minimum": low, "maximum": high}),
        2 => json!({"type": kind, "exclusiveMinimum": low, "exclusiveMaximum": high}),
        3 => json!({"type": kind, "minimum": low}),
        _ if kind == "integer" => json!({"type": kind, "multipleOf": 7}),
        _ => json!({"type": kind, "maximum": high}),
    }
}
