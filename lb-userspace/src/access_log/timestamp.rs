//! `%START_TIME(...)%`: strftime's conversions in the C locale and UTC, with Envoy's fractions of a second.

use std::time::{SystemTime, UNIX_EPOCH};

use super::civil::Civil;
use super::time_format::{Field, Name, Pad, Piece, parse};

/// A compiled format of a point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TimeFormat(Vec<Piece>);

impl TimeFormat {
    /// What Envoy writes without a format: ISO 8601 with milliseconds.
    pub(super) const DEFAULT: &str = "%Y-%m-%dT%H:%M:%S.%3fZ";

    /// Conversions that do not exist are taken literally, as by strftime(3).
    pub(super) fn parse(format: &str) -> Result<Self, String> {
        parse(format).map(Self)
    }

    /// A time before 1970 is written as the start of 1970.
    pub(super) fn write(&self, time: SystemTime, out: &mut Vec<u8>) {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanos) = (since.as_secs(), since.subsec_nanos());
        let civil = Civil::from_unix(seconds);
        for piece in &self.0 {
            match piece {
                Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Number { field, width, pad } => {
                    let value = match field {
                        Field::Epoch => seconds,
                        field => field_value(&civil, *field),
                    };
                    write_number(value, *width, *pad, out);
                }
                Piece::Name { name, width, upper } => write_name(&civil, *name, *width, *upper, out),
                Piece::Fraction(digits) => write_fraction(nanos, *digits, out),
                Piece::ShortestFraction { point } => write_shortest(nanos, *point, out),
            }
        }
    }
}

fn field_value(civil: &Civil, field: Field) -> u64 {
    match field {
        Field::Year => civil.year,
        Field::Century => civil.year / 100,
        Field::YearOfCentury => civil.year % 100,
        Field::IsoYear => civil.iso_week().0,
        Field::IsoYearOfCentury => civil.iso_week().0 % 100,
        Field::Month => civil.month,
        Field::Day => civil.day,
        Field::DayOfYear => civil.day_of_year,
        Field::Hour => civil.hour,
        Field::Hour12 => (civil.hour + 11) % 12 + 1,
        Field::Minute => civil.minute,
        Field::Second => civil.second,
        Field::Weekday => civil.weekday,
        Field::WeekdayFromMonday => (civil.weekday + 6) % 7 + 1,
        Field::WeekFromSunday => (civil.day_of_year + 6 - civil.weekday) / 7,
        Field::WeekFromMonday => (civil.day_of_year + 6 - (civil.weekday + 6) % 7) / 7,
        Field::IsoWeek => civil.iso_week().1,
        // The caller has the seconds themselves.
        Field::Epoch => 0,
    }
}

fn write_number(value: u64, width: u8, pad: Pad, out: &mut Vec<u8>) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value);
    let missing = usize::from(width).saturating_sub(digits.len());
    match pad {
        Pad::None => {}
        Pad::Zero => out.resize(out.len() + missing, b'0'),
        Pad::Space => out.resize(out.len() + missing, b' '),
    }
    out.extend_from_slice(digits.as_bytes());
}

fn write_name(civil: &Civil, name: Name, width: u8, upper: bool, out: &mut Vec<u8>) {
    const WEEKDAYS: [&str; 7] =
        ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (weekday, month) = (WEEKDAYS[civil.weekday as usize % 7], MONTHS[(civil.month as usize + 11) % 12]);
    let text = match name {
        Name::Weekday => weekday,
        Name::ShortWeekday => &weekday[..3],
        Name::Month => month,
        Name::ShortMonth => &month[..3],
        Name::AmPm if civil.hour < 12 => "AM",
        Name::AmPm => "PM",
        Name::LowerAmPm if civil.hour < 12 => "am",
        Name::LowerAmPm => "pm",
    };
    out.resize(out.len() + usize::from(width).saturating_sub(text.len()), b' ');
    let start = out.len();
    out.extend_from_slice(text.as_bytes());
    if upper {
        out[start..].make_ascii_uppercase();
    }
}

/// The first `digits` digits after the decimal point.
fn write_fraction(nanos: u32, digits: u8, out: &mut Vec<u8>) {
    if digits == 0 {
        return;
    }
    let shown = u32::from(digits.min(9));
    write_number((nanos / 10_u32.pow(9 - shown)).into(), shown as u8, Pad::Zero, out);
    // Envoy accepts more digits than a clock has.
    out.resize(out.len() + usize::from(digits.saturating_sub(9)), b'0');
}

/// As many digits as it takes: with `point` nothing at all for a whole second, otherwise at least one.
fn write_shortest(nanos: u32, point: bool, out: &mut Vec<u8>) {
    if point && nanos == 0 {
        return;
    }
    if point {
        out.push(b'.');
    }
    let start = out.len();
    write_fraction(nanos, 9, out);
    while out.len() > start + 1 && out.last() == Some(&b'0') {
        out.pop();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(format: &str, nanos: u64) -> String {
        let mut out = Vec::new();
        let format = TimeFormat::parse(format).unwrap();
        format.write(UNIX_EPOCH + Duration::from_nanos(nanos), &mut out);
        String::from_utf8(out).unwrap()
    }

    /// What Envoy 1.40 wrote for each format at one moment.
    #[test]
    fn renders_as_envoy() {
        let now = 1_796_042_829_434_639_000;
        for (format, expected) in [
            ("%Y-%m-%dT%H:%M:%S.%3fZ", "2026-11-30T12:47:09.434Z"),
            ("%s|%s.%3f|%s%3f|%f%f", "1796042829|1796042829.434|1796042829434|434639000434639000"),
            ("%1f|%2f|%3f|%4f|%6f|%9f", "4|43|434|4346|434639|434639000"),
            ("%E3S|%E*S|%ES|%E0S|%E12S", "09.434|09.434639|%ES|09|09.434639000000"),
            ("%3s|%9s", "1796042829|1796042829"),
            ("%a %A %b %B %h", "Mon Monday Nov November Nov"),
            ("%d %e %j %m", "30 30 334 11"),
            ("%y %Y %C %G %g", "26 2026 20 2026 26"),
            ("%I %p %P %l %k", "12 PM pm 12 12"),
            ("%D %F %T %R %r", "11/30/26 2026-11-30 12:47:09 12:47 12:47:09 PM"),
            ("%c|%x|%X", "Mon Nov 30 12:47:09 2026|11/30/26|12:47:09"),
            ("%Z %z %Ez %E*z %:z", "UTC +0000 +00:00 +00:00:00 +00:00"),
            ("%U %W %u %w %V", "48 48 1 1 49"),
            ("%%", "%"),
            ("%Q %q %E4Y %ET %N %L %i %v %O %J %K %o %+ %t|", "%Q %q 2026 T %N %L %i %v %O %J %K %o %+ \t|"),
            ("lit", "lit"),
            ("%-d %_d %#Y %^b", "30 30 2026 NOV"),
            ("%", "%"),
            ("a%", "a%"),
            ("%Ey %Od", "26 30"),
            ("%E9f|%E3f|%*f", "434639000|434|434639"),
            ("%S.%3f|%OS", "09.434|09"),
            ("%E15S|%E16S", "09.434639000000000|09.4346390000000000"),
        ] {
            assert_eq!(written(format, now), expected, "{format}");
        }
    }

    #[test]
    fn pads_as_strftime() {
        // 2021-01-03T05:04:06Z, a Sunday; strftime(3) of glibc for the same moment.
        let now = 1_609_650_246_000_000_000;
        for (format, expected) in [
            ("%d|%e|%-d|%_d|%03d|%5e", "03| 3|3| 3|003|    3"),
            ("%H|%k|%I|%l|%p", "05| 5|05| 5|AM"),
            ("%j|%-j|%_j", "003|3|  3"),
            ("%U|%W|%V|%G|%g|%u|%w", "01|00|53|2020|20|7|0"),
            ("%10A|%^a|%E*S|%*f", "    Sunday|SUN|06|0"),
        ] {
            assert_eq!(written(format, now), expected, "{format}");
        }
    }

    #[test]
    fn refuses_what_cannot_be_one_line_or_would_fill_it() {
        for format in ["%n", "%_9En", "a\nb", "%1000d", "%E999S"] {
            assert!(TimeFormat::parse(format).is_err(), "{format}");
        }
    }
}
