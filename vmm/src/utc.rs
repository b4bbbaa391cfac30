//! Points in time as log lines and events show them.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// A point in time, shown in UTC as `2026-11-23T01:02:03.123456789`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc {
    seconds: u64,
    nanoseconds: u32,
}

impl Utc {
    /// The present.
    pub fn now() -> Self {
        // A clock before 1970 is shown as 1970: no reason not to log.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { seconds: since.as_secs(), nanoseconds: since.subsec_nanos() }
    }

    /// The point `ns` nanoseconds after the beginning of 1970.
    pub fn from_nanos(ns: u64) -> Self {
        let nanoseconds = u32::try_from(ns % 1_000_000_000).expect("less than 10^9");
        Self { seconds: ns / 1_000_000_000, nanoseconds }
    }

    /// As RFC 3339, with milliseconds.
    pub fn to_rfc_3339(self) -> String {
        let text = self.to_string();
        // Nanoseconds are nine digits after the point; nobody reads the last six.
        format!("{}Z", text.get(..23).unwrap_or(&text))
    }

    /// Reads RFC 3339 in UTC (`Z`), with or without a fraction; nothing that is no day of the calendar.
    pub fn parse(text: &str) -> Option<Self> {
        let (day, time) = text.strip_suffix('Z')?.split_once('T')?;
        let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
        let numbers = |text: &str, separator| -> Option<[u64; 3]> {
            let parts: Vec<u64> = text
                .split(separator)
                .map(|part| part.parse().ok().filter(|_| part.bytes().all(|byte| byte.is_ascii_digit())))
                .collect::<Option<_>>()?;
            parts.try_into().ok()
        };
        let [year, month, day] = numbers(day, '-').filter(|[year, ..]| (1970..2500).contains(year))?;
        let [hour, minute, second] = numbers(time, ':').filter(|[h, m, s]| *h < 24 && *m < 60 && *s < 60)?;
        // Years begin in March here, as in `date`.
        let shifted = if month > 2 { year } else { year - 1 };
        let month_from_march = (month + 9) % 12;
        let days = shifted * 365 + shifted / 4 - shifted / 100
            + shifted / 400
            + (153 * month_from_march + 2) / 5
            + day;
        let digits = fraction.bytes().all(|byte| byte.is_ascii_digit()) && (1..=9).contains(&fraction.len());
        let nanoseconds = format!("{fraction:0<9}").parse().ok().filter(|_| digits)?;
        let seconds = days.checked_sub(719_469)? * 86_400 + hour * 3600 + minute * 60 + second;
        let found = Self { seconds, nanoseconds };
        // A day that is not in the calendar has become another.
        (found.date() == (year, month, day)).then_some(found)
    }

    /// Nanoseconds since 1970.
    pub fn as_nanos(self) -> u64 {
        self.seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(self.nanoseconds))
    }

    /// Milliseconds since 1970.
    pub fn as_millis(self) -> u64 {
        self.seconds * 1000 + u64::from(self.nanoseconds / 1_000_000)
    }

    /// Year, month and day (proleptic Gregorian calendar).
    fn date(self) -> (u64, u64, u64) {
        // Count days from 0000-03-01, so that a leap day is the last of its year, and years in eras of 400.
        let days = self.seconds / 86_400 + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        (era * 400 + year_of_era + u64::from(month <= 2), month, day)
    }
}

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.date();
        let of_day = self.seconds % 86_400;
        let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}", self.nanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_points_in_time_are_shown_as_the_calendar_has_them() {
        for (seconds, shown) in [
            (0, "1970-01-01T00:00:00.000000005"),
            (951_782_400, "2000-02-29T00:00:00.000000005"),
            (951_868_800, "2000-03-01T00:00:00.000000005"),
            (1_709_251_199, "2024-02-29T23:59:59.000000005"),
            (1_795_395_723, "2026-11-23T01:02:03.000000005"),
            (4_107_542_400, "2100-03-01T00:00:00.000000005"),
        ] {
            let time = Utc { seconds, nanoseconds: 5 };
            assert_eq!(time.to_string(), shown);
            assert_eq!(Utc::parse(&format!("{shown}Z")), Some(time));
        }
        let last = "2554-07-21T23:34:33.709551615";
        assert_eq!(Utc::from_nanos(u64::MAX).to_string(), last);
        for bad in [
            "",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.Z",
            "2026-1-1T+1:00:00Z",
            "2026-00-10T00:00:00Z",
            "9999-01-01T00:00:00Z",
        ] {
            assert_eq!(Utc::parse(bad), None, "{bad}");
        }
        assert!(Utc::now().as_millis() > 1_700_000_000_000);
    }
}
