//! The language of `%START_TIME(...)%`.

/// A part of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Literal(String),
    Number {
        field: Field,
        width: u8,
        pad: Pad,
    },
    Name {
        name: Name,
        width: u8,
        upper: bool,
    },
    /// So many digits of the fraction of the second.
    Fraction(u8),
    /// The fraction without trailing zeros; with `point` preceded by one, and absent if it is zero.
    ShortestFraction {
        point: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Year,
    Century,
    YearOfCentury,
    IsoYear,
    IsoYearOfCentury,
    Month,
    Day,
    DayOfYear,
    Hour,
    Hour12,
    Minute,
    Second,
    Weekday,
    WeekdayFromMonday,
    WeekFromSunday,
    WeekFromMonday,
    IsoWeek,
    Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Weekday,
    ShortWeekday,
    Month,
    ShortMonth,
    AmPm,
    LowerAmPm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pad {
    None,
    Zero,
    Space,
}

/// Wider fields than that are a mistake, and a way to make a line of any length.
const MAX_WIDTH: u32 = 64;

/// The parts of `format`; an error says what is wrong with which conversion.
pub(super) fn parse(format: &str) -> Result<Vec<Piece>, String> {
    if format.contains('\n') {
        return Err("the time format has a newline, which would break the line".to_owned());
    }
    let mut pieces = Vec::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        push_literal(&mut pieces, &rest[..at]);
        rest = &rest[at..];
        let spec = Spec::read(rest)?;
        match spec.pieces()? {
            Some(parts) => parts.into_iter().for_each(|part| match part {
                Piece::Literal(text) => push_literal(&mut pieces, &text),
                part => pieces.push(part),
            }),
            None => push_literal(&mut pieces, spec.text),
        }
        rest = &rest[spec.text.len()..];
    }
    push_literal(&mut pieces, rest);
    Ok(pieces)
}

fn push_literal(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Literal(before)) => before.push_str(text),
        _ => pieces.push(Piece::Literal(text.to_owned())),
    }
}

/// One conversion: `%`, flags, width, modifier, letter.
struct Spec<'a> {
    /// All of it.
    text: &'a str,
    /// The last of `_-0`.
    pad: Option<Pad>,
    upper: bool,
    width: Option<u8>,
    /// What stands between width and letter: nothing, `E`, `O`, `E*`, `E3`, `*`, `:`.
    modifier: &'a str,
    letter: Option<char>,
}

impl<'a> Spec<'a> {
    /// `text` starts with `%`.
    fn read(text: &'a str) -> Result<Self, String> {
        let mut rest = &text[1..];
        let (mut pad, mut upper) = (None, false);
        while let Some(flag) = rest.chars().next().filter(|flag| "_-0^#".contains(*flag)) {
            match flag {
                '_' => pad = Some(Pad::Space),
                '-' => pad = Some(Pad::None),
                '0' => pad = Some(Pad::Zero),
                _ => upper = true,
            }
            rest = &rest[1..];
        }
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let width = (digits > 0).then(|| number(&rest[..digits])).transpose()?;
        rest = &rest[digits..];
        let before_letter = rest;
        rest = rest.strip_prefix(['E', 'O', ':']).unwrap_or(rest);
        rest =
            rest.strip_prefix('*').unwrap_or_else(|| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        let modifier = &before_letter[..before_letter.len() - rest.len()];
        let letter = rest.chars().next();
        let length = text.len() - rest.len() + letter.map_or(0, char::len_utf8);
        Ok(Self { text: &text[..length], pad, upper, width, modifier, letter })
    }

    /// What it stands for; `None`: there is no such conversion.
    fn pieces(&self) -> Result<Option<Vec<Piece>>, String> {
        let Some(letter) = self.letter else { return Ok(None) };
        if letter == 'n' {
            return Err("the time format has %n, a newline, which would break the line".to_owned());
        }
        let number = |field, width, pad| {
            Some(vec![Piece::Number {
                field,
                width: self.width.unwrap_or(width),
                pad: self.pad.unwrap_or(pad),
            }])
        };
        let name = |name, width: Option<u8>| {
            Some(vec![Piece::Name { name, width: width.unwrap_or(0), upper: self.upper }])
        };
        let literal = |text: &str| Some(vec![Piece::Literal(text.to_owned())]);
        let second = Piece::Number { field: Field::Second, width: 2, pad: Pad::Zero };
        Ok(match (self.modifier, letter) {
            ("" | "E", 'Y') => number(Field::Year, 1, Pad::None),
            ("E4", 'Y') => number(Field::Year, 4, Pad::Zero),
            ("E", 'T') => literal("T"),
            ("E" | ":", 'z') => literal("+00:00"),
            ("E*", 'z') => literal("+00:00:00"),
            ("", 'f') => match self.width {
                None => Some(vec![Piece::Fraction(9)]),
                Some(digits @ 1..=9) if self.pad.is_none() => Some(vec![Piece::Fraction(digits)]),
                Some(_) => None,
            },
            ("*" | "E*", 'f') => Some(vec![Piece::ShortestFraction { point: false }]),
            ("E*", 'S') => Some(vec![second, Piece::ShortestFraction { point: true }]),
            ("E0", 'S') => Some(vec![second]),
            (modifier, 'f' | 'S') if modifier.len() > 1 => {
                let digits = self::number(&modifier[1..])?;
                let fraction = Piece::Fraction(digits);
                let point = Piece::Literal(".".to_owned());
                Some(if letter == 'f' { vec![fraction] } else { vec![second, point, fraction] })
            }
            ("" | "E", 'C') => number(Field::Century, 2, Pad::Zero),
            ("" | "E" | "O", 'y') => number(Field::YearOfCentury, 2, Pad::Zero),
            ("", 'G') => number(Field::IsoYear, 1, Pad::None),
            ("", 'g') => number(Field::IsoYearOfCentury, 2, Pad::Zero),
            ("" | "O", 'm') => number(Field::Month, 2, Pad::Zero),
            ("" | "O", 'd') => number(Field::Day, 2, Pad::Zero),
            ("" | "O", 'e') => number(Field::Day, 2, Pad::Space),
            ("", 'j') => number(Field::DayOfYear, 3, Pad::Zero),
            ("" | "O", 'H') => number(Field::Hour, 2, Pad::Zero),
            ("", 'k') => number(Field::Hour, 2, Pad::Space),
            ("" | "O", 'I') => number(Field::Hour12, 2, Pad::Zero),
            ("", 'l') => number(Field::Hour12, 2, Pad::Space),
            ("" | "O", 'M') => number(Field::Minute, 2, Pad::Zero),
            ("" | "O", 'S') => number(Field::Second, 2, Pad::Zero),
            ("" | "O", 'w') => number(Field::Weekday, 1, Pad::Zero),
            ("" | "O", 'u') => number(Field::WeekdayFromMonday, 1, Pad::Zero),
            ("" | "O", 'U') => number(Field::WeekFromSunday, 2, Pad::Zero),
            ("" | "O", 'W') => number(Field::WeekFromMonday, 2, Pad::Zero),
            ("" | "O", 'V') => number(Field::IsoWeek, 2, Pad::Zero),
            ("", 's') => number(Field::Epoch, 1, Pad::Zero),
            ("", 'A') => name(Name::Weekday, self.width),
            ("", 'a') => name(Name::ShortWeekday, self.width),
            ("", 'B') => name(Name::Month, self.width),
            ("", 'b' | 'h') => name(Name::ShortMonth, self.width),
            ("", 'p') => name(Name::AmPm, self.width),
            ("", 'P') => name(Name::LowerAmPm, self.width),
            ("", 'Z') => literal("UTC"),
            ("", 'z') => literal("+0000"),
            ("", 't') => literal("\t"),
            ("", '%') => literal("%"),
            ("" | "E", 'D' | 'x') => Some(parse("%m/%d/%y")?),
            ("", 'F') => Some(parse("%Y-%m-%d")?),
            ("" | "E", 'X') | ("", 'T') => Some(parse("%H:%M:%S")?),
            ("", 'R') => Some(parse("%H:%M")?),
            ("", 'r') => Some(parse("%I:%M:%S %p")?),
            ("" | "E", 'c') => Some(parse("%a %b %e %H:%M:%S %Y")?),
            _ => None,
        })
    }
}

fn number(digits: &str) -> Result<u8, String> {
    match digits.parse() {
        Ok(number @ 0..=MAX_WIDTH) => Ok(number as u8),
        _ => Err(format!("the time format has a width of {digits}; up to {MAX_WIDTH} are possible")),
    }
}
