//! How the VMM logs: `PUT /logger`.

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

/// Least severe level that is still logged. Spelled in any case; `Warn` is the same as `Warning`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Only errors.
    Error,
    /// Warnings, too.
    Warning,
    /// What happens, briefly.
    Info,
    /// What happens, with its details.
    Debug,
    /// Everything.
    Trace,
}

impl std::str::FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const NAMES: [(&str, LogLevel); 7] = [
            ("off", LogLevel::Off),
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warning),
            ("warning", LogLevel::Warning),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ];
        NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, level)| *level).ok_or_else(
            || format!("unknown log level `{text}`, expected Off, Error, Warning, Info, Debug or Trace"),
        )
    }
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl From<LogLevel> for log::LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::Off,
            LogLevel::Error => Self::Error,
            LogLevel::Warning => Self::Warn,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}

/// Log destination and form; what is missing stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Logger {
    /// File or FIFO on the host; standard output until one is named.
    pub log_path: Option<String>,
    /// Least severe level that is logged.
    pub level: Option<LogLevel>,
    /// Whether a line names its level.
    pub show_level: Option<bool>,
    /// Whether a line names the source file and line it comes from.
    pub show_log_origin: Option<bool>,
    /// Log only what comes from modules whose path starts with this.
    pub module: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_read_in_any_case_and_warn_means_warning() {
        for (text, level) in
            [("OFF", LogLevel::Off), ("warn", LogLevel::Warning), ("Warning", LogLevel::Warning)]
        {
            assert_eq!(text.parse(), Ok(level));
        }
        assert!("verbose".parse::<LogLevel>().unwrap_err().contains("expected Off, Error"));
    }
}
