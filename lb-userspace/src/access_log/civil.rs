//! The date and the time of day in UTC of a Unix time.

/// A moment to the second in the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Civil {
    pub(super) year: u64,
    /// From 1.
    pub(super) month: u64,
    /// From 1.
    pub(super) day: u64,
    /// From 1.
    pub(super) day_of_year: u64,
    /// From 0, Sunday.
    pub(super) weekday: u64,
    pub(super) hour: u64,
    pub(super) minute: u64,
    pub(super) second: u64,
}

impl Civil {
    /// `seconds` since the start of 1970.
    pub(super) const fn from_unix(seconds: u64) -> Self {
        let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
        // Years are counted from 1 March, so that a leap day is the last day of its year and the months' lengths follow
        // one rule: 153 days in five months. 719,468 days lie between 1 March of year 0 and 1970.
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let day = day_from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = era * 400 + year_of_era + (month <= 2) as u64;
        let day_of_year = if month <= 2 {
            // January and February are the last 59 or 60 days of the shifted year, from its day 306 on.
            day_from_march - 305
        } else {
            day_from_march + 60 + is_leap(year) as u64
        };
        Self {
            year,
            month,
            day,
            day_of_year,
            weekday: (days + 4) % 7,
            hour: second_of_day / 3_600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    /// Year and week of ISO 8601: weeks start on Monday, and belong to the year of their Thursday.
    pub(super) const fn iso_week(&self) -> (u64, u64) {
        // The day of the year of this week's Thursday, moved by a year so that it cannot be negative.
        let thursday = self.day_of_year + 366 + 3 - (self.weekday + 6) % 7;
        let in_year = 366 + 365 + is_leap(self.year) as u64;
        if thursday <= 366 {
            let before = self.year - 1;
            (before, (thursday - 1 + is_leap(before) as u64 - 1) / 7 + 1)
        } else if thursday > in_year {
            (self.year + 1, (thursday - in_year - 1) / 7 + 1)
        } else {
            (self.year, (thursday - 366 - 1) / 7 + 1)
        }
    }
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts every day from 1970 to 2400 by the calendar's rules.
    #[test]
    fn every_day_follows_the_one_before() {
        let (mut year, mut month, mut day, mut day_of_year, mut weekday) = (1970, 1, 1, 1, 4);
        let (mut iso_year, mut iso_week) = (1970, 1);
        for days in 0..157_054 {
            let civil = Civil::from_unix(days * 86_400 + 86_399);
            let found = (civil.year, civil.month, civil.day, civil.day_of_year, civil.weekday);
            assert_eq!(found, (year, month, day, day_of_year, weekday), "day {days}");
            assert_eq!((civil.hour, civil.minute, civil.second), (23, 59, 59));
            assert_eq!(civil.iso_week(), (iso_year, iso_week), "{year}-{month}-{day}");
            let length = match month {
                2 => 28 + is_leap(year) as u64,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            (day, day_of_year, weekday) = (day + 1, day_of_year + 1, (weekday + 1) % 7);
            if day > length {
                (day, month) = (1, month + 1);
            }
            if month > 12 {
                (month, year, day_of_year) = (1, year + 1, 1);
            }
            // A new week: its first day is at most three days before the new year that it belongs to.
            if weekday == 1 {
                let first = (month == 12 && day >= 29) || (month == 1 && day <= 4);
                (iso_year, iso_week) = if first {
                    (if month == 12 { year + 1 } else { year }, 1)
                } else {
                    (iso_year, iso_week + 1)
                };
            }
        }
        assert_eq!((year, month, day), (2400, 1, 1));
    }
}
