//! What is wrong with a configuration, and where.

use std::error::Error;
use std::fmt;

use super::Place;

/// One error; shown as `FILE:LINE:COLUMN: FIELD: MESSAGE`, without the parts that are unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub file: String,
    /// From 1; 0: the file as a whole.
    pub line: u64,
    /// In characters, from 1; 0: the file as a whole.
    pub column: u64,
    /// As in `listeners[0].cluster`; empty where the text is no YAML.
    pub field: String,
    pub message: String,
}

impl ConfigError {
    pub(super) fn new(
        file: &str,
        place: Place,
        field: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let Place { line, column } = place;
        Self { file: file.to_owned(), line, column, field: field.into(), message: message.into() }
    }

    /// An error of the file as a whole.
    pub(super) fn unreadable(file: &str, message: String) -> Self {
        Self { file: file.to_owned(), line: 0, column: 0, field: String::new(), message }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        f.write_str(": ")?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl Error for ConfigError {}

/// All errors of a configuration, in the order of the file; shown one a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }

    pub(super) fn push(&mut self, error: ConfigError) {
        self.0.push(error);
    }
}

impl From<Vec<ConfigError>> for ConfigErrors {
    fn from(mut errors: Vec<ConfigError>) -> Self {
        errors.sort_by_key(|error| (error.line, error.column));
        Self(errors)
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl Error for ConfigErrors {}
