//! Prompts and arrival times of a load, from a seed.
//!
//! Must never give two requests of a load the same beginning: a server would answer the second from what
//! it kept of the first. Must never depend on the server.

/// Short common words: with a blank before, each is one token in the usual vocabularies of English.
const WORDS: [&str; 96] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
    "car",
    "city",
    "community",
    "name",
    "president",
    "team",
    "minute",
    "idea",
    "body",
    "information",
    "back",
    "parent",
    "face",
    "others",
    "level",
    "office",
    "door",
    "health",
    "person",
    "art",
    "war",
    "history",
    "party",
    "result",
    "change",
    "morning",
    "reason",
    "research",
    "girl",
    "guy",
    "moment",
    "air",
];

/// Random numbers that are the same everywhere. Source: SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The prompt of request `index`: `words` words. The first ones spell the index, so they are nobody else's
/// (as far as `words` can tell requests apart).
pub fn prompt(seed: u64, index: u32, words: u32) -> String {
    let count = WORDS.len() as u64;
    let mut random = Random(seed ^ (u64::from(index) << 32));
    // Indices are shuffled by a step that shares no factor with the words, so that neighbours differ at once.
    let mut place = u64::from(index).wrapping_mul(61).wrapping_add(seed % count);
    let mut text = String::new();
    for at in 0..words {
        let word = if at < 4 {
            let word = place % count;
            place /= count;
            word
        } else {
            random.next() % count
        };
        if at > 0 {
            text.push(' ');
        }
        text.push_str(WORDS[word as usize]);
    }
    text
}

/// Seconds from the beginning at which requests arrive: a Poisson process of `rate` a second.
pub fn arrivals(seed: u64, rate: f64, count: u32) -> Vec<f64> {
    let mut random = Random(!seed);
    let mut now = 0.0;
    (0..count)
        .map(|_| {
            now -= (1.0 - random.unit()).ln() / rate;
            now
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn prompts_have_their_length_and_a_beginning_of_their_own() {
        let all: Vec<String> = (0..5_000).map(|index| prompt(7, index, 100)).collect();
        assert!(all.iter().all(|text| text.split(' ').count() == 100));
        let starts: BTreeSet<Vec<&str>> = all.iter().map(|text| text.split(' ').take(4).collect()).collect();
        assert_eq!(starts.len(), all.len());
        let first_words: BTreeSet<&str> =
            all[..96].iter().filter_map(|text| text.split(' ').next()).collect();
        assert_eq!(first_words.len(), 96, "neighbours differ from the first word on");
        assert_eq!(all[3], prompt(7, 3, 100));
        assert_ne!(all[3], prompt(8, 3, 100));
        assert_eq!(prompt(1, 2, 1).split(' ').count(), 1);
    }

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let times = arrivals(3, 4.0, 20_000);
        assert!(times.is_sorted());
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.25).abs() < 0.01, "{mean}");
        assert!((variance.sqrt() - 0.25).abs() < 0.015, "{variance}");
        assert_eq!(times, arrivals(3, 4.0, 20_000));
    }
}
