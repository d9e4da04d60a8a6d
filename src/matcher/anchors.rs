//! A fast look over text for places where a pattern may stand.
//!
//! Each pattern is known by a few bytes near its middle: starts such as
//! `sk_live_` or `eyJhbGciOi` are common to many values. As these windows are
//! taken at several places in a row, only every so many bytes of a text are
//! looked at, and a bitmap of hashes rules nearly all of them out.
//!
//! An Aho-Corasick automaton over the same windows (aho-corasick 1.1.5, DFA or
//! contiguous NFA, measured in turn on the same log) did 0.3 to 0.5 GB/s with 10 values
//! and 0.2 GB/s with 1,000, where this does about 2 and 1 GB/s; and its tables,
//! which spell out parts of values, cannot be overwritten.

use std::collections::HashMap;

use zeroize::Zeroizing;

use super::encodings::SHORT;

/// Widest window: what one multiplication hashes.
const MAX_WIDTH: usize = 8;

/// Windows in a row per pattern, and bytes of text from look to look.
const STRIDE: usize = 4;

/// Most places at which a window stands in patterns; but for its place at a
/// pattern's start, which none can be refused. Bounds the work per look.
const CROWD: usize = 16;

/// Places tried before a pattern is known by its start.
const TRIES: usize = 64;

/// Bits of the bitmap per window: one look in so many is in vain.
const BITS: usize = 128;

/// A set of hashes that may contain others too.
struct Bits {
    shift: u32,
    words: Vec<u64>,
}

impl Bits {
    fn new(count: usize) -> Self {
        let log = (count * BITS).next_power_of_two().ilog2().clamp(10, 24);
        Self { shift: u64::BITS - log, words: vec![0; (1 << log) / 64] }
    }

    fn place(&self, hash: u64) -> (usize, u64) {
        let bit = hash >> self.shift;
        (usize::try_from(bit / 64).unwrap_or(usize::MAX), 1 << (bit % 64))
    }

    fn add(&mut self, hash: u64) {
        let (at, bit) = self.place(hash);
        if let Some(word) = self.words.get_mut(at) {
            *word |= bit;
        }
    }

    fn may_have(&self, hash: u64) -> bool {
        let (at, bit) = self.place(hash);
        self.words.get(at).is_some_and(|word| word & bit != 0)
    }
}

/// Windows of one width. No two have the same hash.
struct Windows {
    width: usize,
    mask: u64,
}

impl Windows {
    fn new(width: usize) -> Self {
        Self { width, mask: u64::MAX >> (8 * (MAX_WIDTH - width)) }
    }

    fn hash(&self, eight: [u8; 8]) -> u64 {
        // 2^64 by the golden ratio: its upper bits depend on all of the window.
        (u64::from_le_bytes(eight) & self.mask).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The hash of the window at the start; `None` if the text is too short.
    fn first(&self, text: &[u8]) -> Option<u64> {
        if let Some(eight) = text.first_chunk() {
            return Some(self.hash(*eight));
        }
        let mut eight = [0; 8];
        for (to, from) in eight.iter_mut().zip(text) {
            *to = *from;
        }
        (text.len() >= self.width).then(|| self.hash(eight))
    }
}

/// Where patterns may start, by their first bytes.
pub(super) struct Heads {
    windows: Windows,
    bits: Bits,
}

impl Heads {
    pub(super) fn new<'a>(patterns: impl Iterator<Item = &'a [u8]> + Clone) -> Self {
        let shortest = patterns.clone().map(<[u8]>::len).min();
        let windows = Windows::new(shortest.unwrap_or(MAX_WIDTH).min(MAX_WIDTH));
        let mut bits = Bits::new(patterns.clone().count());
        patterns.filter_map(|pattern| windows.first(pattern)).for_each(|hash| bits.add(hash));
        Self { windows, bits }
    }

    /// False if no pattern starts as `text` does.
    pub(super) fn may_start(&self, text: &[u8]) -> bool {
        self.windows.first(text).is_none_or(|hash| self.bits.may_have(hash))
    }

    /// Memory it holds.
    pub(super) fn memory(&self) -> usize {
        self.bits.words.len() * size_of::<u64>()
    }
}

/// Windows of patterns, and at which places in patterns they stand.
pub(super) struct Anchors {
    windows: Windows,
    stride: usize,
    bits: Bits,
    /// Sorted; one entry per window and place.
    hashes: Zeroizing<Vec<u64>>,
    places: Vec<usize>,
}

impl Anchors {
    /// The anchors of some patterns. Short ones, if there are any, have their
    /// own: windows as small as theirs stand everywhere.
    pub(super) fn of<'a>(patterns: impl Iterator<Item = &'a [u8]>) -> Vec<Self> {
        let (long, short): (Vec<&[u8]>, Vec<_>) = patterns.partition(|p| p.len() >= SHORT);
        let sets = [(long, STRIDE), (short, 1)];
        sets.iter().filter_map(|(patterns, stride)| Self::new(patterns, *stride)).collect()
    }

    fn new(patterns: &[&[u8]], stride: usize) -> Option<Self> {
        let shortest = patterns.iter().map(|pattern| pattern.len()).min()?;
        let windows = Windows::new((shortest + 1 - stride).min(MAX_WIDTH));
        let mut taken = Taken { windows, stride, places: HashMap::new() };
        for pattern in patterns {
            taken.take(pattern);
        }
        let Taken { windows, places, .. } = taken;
        let mut bits = Bits::new(places.len());
        let mut order: Vec<(&u64, &Vec<usize>)> = places.iter().collect();
        order.sort_unstable();
        let count = places.values().map(Vec::len).sum();
        let mut hashes = Zeroizing::new(Vec::with_capacity(count));
        let mut flat = Vec::with_capacity(count);
        for (hash, places) in order {
            bits.add(*hash);
            hashes.extend(places.iter().map(|_| *hash));
            flat.extend_from_slice(places);
        }
        Some(Self { windows, stride, bits, hashes, places: flat })
    }

    /// Calls `visit` with every place where a pattern may start; with some
    /// more than once, in no order.
    pub(super) fn places(&self, text: &[u8], mut visit: impl FnMut(usize)) {
        let mut at = 0;
        for eight in text.windows(MAX_WIDTH).step_by(self.stride) {
            if let Some(eight) = eight.first_chunk() {
                let hash = self.windows.hash(*eight);
                if self.bits.may_have(hash) {
                    self.look(at, hash, &mut visit);
                }
            }
            at += self.stride;
        }
        // Narrower windows fit behind the last of eight bytes.
        while let Some(hash) = text.get(at..).and_then(|rest| self.windows.first(rest)) {
            self.look(at, hash, &mut visit);
            at += self.stride;
        }
    }

    /// Apart, so that the loop over the text stays small.
    #[inline(never)]
    fn look(&self, at: usize, hash: u64, visit: &mut impl FnMut(usize)) {
        let first = self.hashes.partition_point(|known| *known < hash);
        let known = self.hashes.iter().zip(&self.places).skip(first);
        known
            .take_while(|(known, _)| **known == hash)
            .filter_map(|(_, place)| at.checked_sub(*place))
            .for_each(visit);
    }

    /// Memory it holds.
    pub(super) fn memory(&self) -> usize {
        self.bits.words.len() * size_of::<u64>()
            + self.hashes.capacity() * size_of::<u64>()
            + self.places.capacity() * size_of::<usize>()
    }
}

/// Windows chosen so far.
struct Taken {
    windows: Windows,
    stride: usize,
    places: HashMap<u64, Vec<usize>>,
}

impl Taken {
    /// Chooses the windows of a pattern: near its middle, letters and digits
    /// if possible, and none that stands at many places already.
    fn take(&mut self, pattern: &[u8]) {
        let span = self.windows.width + self.stride - 1;
        let last = pattern.len().saturating_sub(span);
        let middle = last / 2;
        let near = (0..=last + 1)
            .map(|n| if n % 2 == 0 { middle + n / 2 } else { middle.wrapping_sub(n / 2 + 1) })
            .filter(|at| *at <= last)
            .take(TRIES);
        let plain = |at: &usize| {
            let span = pattern.get(*at..at + span).unwrap_or_default();
            span.iter().all(u8::is_ascii_alphanumeric)
        };
        let free = |at: &usize| {
            self.row(pattern, *at).all(|(hash, at)| {
                let places = self.places.get(&hash);
                places.is_none_or(|places| places.len() < CROWD || places.contains(&at))
            })
        };
        let mut tries = near.clone().filter(plain).chain(near.clone());
        let chosen = tries.find(free).unwrap_or(0);
        let row: Vec<(u64, usize)> = self.row(pattern, chosen).collect();
        for (hash, at) in row {
            let places = self.places.entry(hash).or_default();
            if !places.contains(&at) {
                places.push(at);
            }
        }
    }

    /// The windows in a row from `at`, and where they stand.
    fn row(&self, pattern: &[u8], at: usize) -> impl Iterator<Item = (u64, usize)> {
        (at..at + self.stride).filter_map(|at| Some((self.windows.first(pattern.get(at..)?)?, at)))
    }
}
