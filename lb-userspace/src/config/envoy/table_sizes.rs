//! The sizes of a ring or table, which have no effect but may be wrong.

use super::import::Import;
use super::message::Message;
use super::value;

const MAX_RING: u64 = 8_388_608;
const MAX_TABLE: u64 = 5_000_011;
const OWN_TABLE: &str = "Headgate's table has 65,537 entries";

pub(super) fn check(fields: &Message<'_>, import: &mut Import<'_>) {
    let mut size = |key, most| {
        let entry = fields.get(key)?;
        let size = value::number(entry, 0..=most, import)?;
        import.ignore(entry, OWN_TABLE);
        Some((entry, size))
    };
    let least = size("minimum_ring_size", MAX_RING).map_or(1024, |(_, size)| size);
    let most = size("maximum_ring_size", MAX_RING);
    let table = size("table_size", MAX_TABLE);
    if let Some((entry, most)) = most
        && most < least
    {
        import.error(entry, format!("below minimum_ring_size, {least}: write as much or more"));
    }
    if let Some((entry, table)) = table
        && !is_prime(table)
    {
        import.error(entry, format!("{table} is no prime number, as a Maglev table needs"));
    }
}

/// By division, which for numbers up to [`MAX_TABLE`] takes some thousand steps.
fn is_prime(number: u64) -> bool {
    number >= 2
        && (2..)
            .take_while(|divisor| divisor * divisor <= number)
            .all(|divisor| !number.is_multiple_of(divisor))
}
