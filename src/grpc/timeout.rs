//! How long a call may take: as its caller tells in `grpc-timeout`, and no
//! longer than any may.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Part of its time that a call leaves for its answer to travel, at most: what
/// comes when the caller has stopped waiting, tells nobody why.
const TRAVEL: Duration = Duration::from_millis(100);

/// The time of one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallTime {
    start: Instant,
    all: Duration,
    /// Until the end of a stream; `None`: it has none.
    stream: Option<Duration>,
}

impl CallTime {
    /// Of a call that begins now. A `grpc-timeout` that is none counts as none,
    /// as in tonic itself.
    pub(super) fn of(headers: &HeaderMap, longest: Duration) -> Self {
        let told = headers.get(GRPC_TIMEOUT).and_then(|told| parse(told.as_bytes()));
        let all = told.map_or(longest, |told| told.min(longest));
        Self { start: Instant::now(), all, stream: told }
    }

    /// For the work.
    pub(super) fn work(self) -> Duration {
        self.all - self.travel()
    }

    /// Whether nothing can be done in it: timers count milliseconds.
    pub(super) fn is_over(self) -> bool {
        self.work() < Duration::from_millis(1)
    }

    /// For all of it, to receive the message among it. Longer than for the work,
    /// which tells more when it ends by itself.
    pub(super) fn call(self) -> Duration {
        self.all - self.travel() / 2
    }

    /// What is left of a stream.
    pub(super) fn rest(self) -> Option<Duration> {
        Some(self.stream?.saturating_sub(self.start.elapsed()))
    }

    fn travel(self) -> Duration {
        TRAVEL.min(self.all / 10)
    }
}

/// Up to 8 digits and a unit (gRPC over HTTP/2).
fn parse(told: &[u8]) -> Option<Duration> {
    let (unit, digits) = told.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3_600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(10);

    fn time(told: &str) -> CallTime {
        let mut headers = HeaderMap::new();
        headers.insert(GRPC_TIMEOUT, told.parse().unwrap());
        CallTime::of(&headers, LONGEST)
    }

    #[tokio::test(start_paused = true)]
    async fn callers_tell_less_than_any_call_may_take() {
        let ms = Duration::from_millis;
        for (told, all) in [
            ("300m", ms(300)),
            ("2S", ms(2_000)),
            ("00000002S", ms(2_000)),
            ("500000u", ms(500)),
            ("7000000n", ms(7)),
            ("0n", Duration::ZERO),
            ("1M", LONGEST),
            ("99999999H", LONGEST),
        ] {
            assert_eq!(time(told).all, all, "{told}");
            assert!(time(told).rest().is_some_and(|rest| rest >= all), "{told}");
        }
        for none in ["", "5", "S", "000000002S", "-1S", "1.5S", "+1S", "1s", "1 S", "1SS"] {
            let time = time(none);
            assert_eq!((time.all, time.rest()), (LONGEST, None), "{none:?}");
        }
        assert!(["0n", "1n", "0S", "999u"].iter().all(|told| time(told).is_over()));
        assert!(!time("2m").is_over());
        let (short, long) = (time("300m"), time("9S"));
        assert_eq!((short.work(), short.call()), (ms(270), ms(285)));
        assert_eq!((long.work(), long.call()), (ms(8_900), ms(8_950)));
        tokio::time::advance(ms(200)).await;
        assert_eq!(short.rest(), Some(ms(100)));
    }
}
