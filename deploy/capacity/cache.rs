//! The data-key cache of a replica: how often it asks the KMS.
//!
//! Resolves of a workspace are taken to come at random (Poisson), with one of two rates.
//! A key is asked for at its first use, and again at the first use after its soft age;
//! it is gone when the cache needs its room for another (least recently used goes) or at
//! its hard age. So from one call to the KMS to the next passes the time that the key
//! is good for, and then the time until somebody wants it, 1/rate on average.

use serde::Serialize;

/// Workspaces that are asked for equally often.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Class {
    pub(crate) workspaces: f64,
    /// Resolves per second of each.
    pub(crate) rate: f64,
}

/// Bounds of a cache; times in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cache {
    pub(crate) keys: f64,
    pub(crate) soft: f64,
    pub(crate) hard: f64,
}

/// What a cache does, in the long run.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Caching {
    /// Calls to the KMS per second.
    pub(crate) calls: f64,
    /// Share of the Resolves that wait for one of them.
    pub(crate) cold: f64,
    /// Keys in memory.
    pub(crate) held: f64,
}

impl Cache {
    pub(crate) fn caching(&self, classes: &[Class]) -> Caching {
        let stays = self.stays(classes);
        let resolves: f64 = classes.iter().map(|of| of.workspaces * of.rate).sum();
        let sum = |each: &dyn Fn(&Class) -> f64| -> f64 {
            classes.iter().filter(|of| of.rate > 0.0).map(|of| of.workspaces * each(of)).sum()
        };
        Caching {
            calls: sum(&|of| 1.0 / (self.good_for(of.rate, stays) + 1.0 / of.rate)),
            cold: sum(&|of| of.rate * self.cold(of.rate, stays)) / resolves,
            held: sum(&|of| self.there(of.rate)).min(self.keys),
        }
    }

    /// For how long a key stays since its last use, given that others want its room: what
    /// is used within that time fills the cache (Che's approximation). Endless if there is
    /// room for all.
    fn stays(&self, classes: &[Class]) -> f64 {
        let all: f64 = classes.iter().map(|of| of.workspaces * self.there(of.rate)).sum();
        if all <= self.keys {
            return f64::INFINITY;
        }
        let used = |within: f64| -> f64 {
            classes.iter().map(|of| of.workspaces * (1.0 - (-of.rate * within).exp())).sum()
        };
        bisect(0.0, self.hard * 1e3, |within| used(within) < self.keys)
    }

    /// Share of the time for which a key would be there, had all room.
    fn there(&self, rate: f64) -> f64 {
        if rate <= 0.0 {
            return 0.0;
        }
        let idle = (1.0 - (-rate * (self.hard - self.soft)).exp()) / rate;
        (self.soft + idle) / (self.soft + 1.0 / rate)
    }

    /// Mean time from a call to the KMS to when the next use leads to another: the soft
    /// age, or less where the key goes before.
    fn good_for(&self, rate: f64, stays: f64) -> f64 {
        if stays >= self.soft {
            return self.soft;
        }
        // Until there is a first pause of this length: its mean, and its end taken to
        // come at a steady rate from the length of a pause on.
        let mean = (rate * stays).exp_m1() / rate;
        let beyond = mean - stays;
        if !beyond.is_finite() {
            return self.soft;
        }
        if beyond <= 0.0 {
            return stays;
        }
        stays + beyond * (1.0 - (-(self.soft - stays) / beyond).exp())
    }

    /// Share of the Resolves that find no key.
    fn cold(&self, rate: f64, stays: f64) -> f64 {
        let gone = (-rate * stays).exp();
        let too_old = (-rate * (self.hard - self.soft)).exp() / (1.0 + rate * self.soft);
        gone.max(too_old)
    }

    /// Seconds until a replica that began with no key has as few cold Resolves as in the
    /// long run, and 5 % more; it makes no more than `most` calls a second. None within
    /// twice the hard age: it never gets warm.
    pub(crate) fn warm_up(&self, classes: &[Class], most: f64) -> Option<f64> {
        let resolves: f64 = classes.iter().map(|of| of.workspaces * of.rate).sum();
        let enough = self.caching(classes).cold + 0.05;
        let step = self.soft / 2_000.0;
        let mut without: Vec<_> = classes.iter().map(|of| of.workspaces).collect();
        let (mut time, mut loaded) = (0.0, 0.0);
        while time < 2.0 * self.hard {
            let wanted: f64 = classes.iter().zip(&without).map(|(of, left)| left * of.rate).sum();
            if wanted / resolves <= enough || loaded >= self.keys {
                return Some(time);
            }
            // Within a step, each key is loaded once however often it is wanted.
            let asked: Vec<_> = classes
                .iter()
                .zip(&without)
                .map(|(of, left)| left * (1.0 - (-of.rate * step).exp()))
                .collect();
            let sum: f64 = asked.iter().sum();
            let granted = (most * step / sum).min(1.0);
            for (left, asked) in without.iter_mut().zip(asked) {
                *left -= asked * granted;
            }
            loaded += sum * granted;
            time += step;
        }
        None
    }
}

/// Where `below` turns false, to a part in a million million.
pub(crate) fn bisect(mut from: f64, mut to: f64, below: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..100 {
        let middle = f64::midpoint(from, to);
        if below(middle) {
            from = middle;
        } else {
            to = middle;
        }
    }
    f64::midpoint(from, to)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use super::*;

    const DAY: Cache = Cache { keys: 1e9, soft: 900.0, hard: 3_600.0 };

    fn near(is: f64, should: f64, by: f64) {
        assert!((is - should).abs() <= by * should.abs() + 1e-12, "{is} is not near {should}");
    }

    #[test]
    fn with_room_for_all_a_key_costs_a_call_per_soft_age_and_pause() {
        let busy = [Class { workspaces: 1_000.0, rate: 10.0 }];
        near(DAY.caching(&busy).calls, 1_000.0 / 900.1, 1e-9);
        near(DAY.caching(&busy).held, 1_000.0, 1e-3);
        assert!(DAY.caching(&busy).cold < 1e-9);
        // Once a day each: every Resolve is cold.
        let rare = [Class { workspaces: 1_000.0, rate: 1.0 / 86_400.0 }];
        near(DAY.caching(&rare).calls, 1_000.0 / 87_300.0, 1e-9);
        assert!(DAY.caching(&rare).cold > 0.95);
    }

    #[test]
    fn more_room_a_longer_age_and_fewer_workspaces_never_cost_calls() {
        let classes = |workspaces: f64| {
            [
                Class { workspaces: workspaces * 0.1, rate: 8_000.0 / (workspaces * 0.1) },
                Class { workspaces: workspaces * 0.9, rate: 2_000.0 / (workspaces * 0.9) },
            ]
        };
        let mut before = 0.0;
        for workspaces in [100.0, 1e3, 1e4, 3e4, 1e5, 1e6, 1e7] {
            let calls = Cache { keys: 1e4, ..DAY }.caching(&classes(workspaces)).calls;
            assert!(calls >= before && calls <= 10_000.0 * (1.0 + 1e-9), "{workspaces}: {calls}");
            before = calls;
        }
        let mut before = f64::INFINITY;
        for keys in [1.0, 100.0, 1e3, 1e4, 5e4, 1e5, 1e6] {
            let calls = Cache { keys, ..DAY }.caching(&classes(1e5)).calls;
            assert!(calls <= before * (1.0 + 1e-9), "{keys}: {calls} > {before}");
            before = calls;
        }
        let age = |soft| Cache { soft, ..DAY }.caching(&classes(1e5)).calls;
        assert!(age(1_800.0) < age(900.0));
    }

    /// The same, played: a cache of the service's rules under random calls.
    fn played(cache: Cache, classes: &[Class], seconds: f64) -> Caching {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        let total: f64 = classes.iter().map(|of| of.workspaces * of.rate).sum();
        // Of each workspace: when asked for, and its place in the order of use.
        let mut keys: HashMap<u64, (f64, u64)> = HashMap::new();
        let mut order: BTreeMap<u64, u64> = BTreeMap::new();
        let (mut time, mut use_number) = (0.0, 0);
        let (mut resolves, mut calls, mut cold) = (0.0, 0.0, 0.0);
        while time < seconds {
            time -= (1.0 - random()).ln() / total;
            let (mut left, mut first) = (random() * total, 0.0);
            let mut workspace = 0;
            for of in classes {
                if left < of.workspaces * of.rate {
                    workspace = (first + (left / of.rate).floor()).to_bits();
                    break;
                }
                left -= of.workspaces * of.rate;
                first += of.workspaces;
            }
            let known = keys.get(&workspace).copied();
            let age = known.map_or(f64::INFINITY, |(since, _)| time - since);
            if let Some((_, place)) = known {
                order.remove(&place);
            }
            let since = if age < cache.soft { time - age } else { time };
            use_number += 1;
            keys.insert(workspace, (since, use_number));
            order.insert(use_number, workspace);
            if keys.len() as f64 > cache.keys {
                let (_, last) = order.pop_first().unwrap();
                keys.remove(&last);
            }
            // The first half fills the cache.
            if time > seconds / 2.0 {
                resolves += 1.0;
                calls += f64::from(u8::from(age >= cache.soft));
                cold += f64::from(u8::from(age >= cache.hard));
            }
        }
        let half = seconds / 2.0;
        Caching { calls: calls / half, cold: cold / resolves, held: keys.len() as f64 }
    }

    #[test]
    fn the_formulas_say_what_happens() {
        let classes =
            [Class { workspaces: 100.0, rate: 0.4 }, Class { workspaces: 900.0, rate: 0.01 }];
        // Room for all, for most, for the hot ones, for a few.
        for keys in [1e6, 700.0, 300.0, 100.0, 20.0] {
            let cache = Cache { keys, soft: 100.0, hard: 400.0 };
            let (told, seen) = (cache.caching(&classes), played(cache, &classes, 8_000.0));
            near(told.calls, seen.calls, 0.06);
            assert!((told.cold - seen.cold).abs() < 0.03, "{keys}: {} {}", told.cold, seen.cold);
            if keys < 1e6 {
                near(told.held, seen.held, 0.02);
            }
        }
    }

    #[test]
    fn warming_up_takes_the_longer_the_fewer_calls_it_may_make() {
        let classes = [Class { workspaces: 50_000.0, rate: 0.2 }];
        let free = DAY.warm_up(&classes, 1e9).unwrap();
        // 95 % have come once after ln 20 / rate.
        near(free, 20.0_f64.ln() / 0.2, 0.1);
        let bound = DAY.warm_up(&classes, 1_000.0).unwrap();
        assert!(bound > 47.0 && bound < 60.0, "{bound}");
        assert_eq!(DAY.warm_up(&classes, 1.0), None);
    }
}
