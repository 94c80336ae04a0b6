//! Errors as the specification wants them: a number, a message, details.

use std::fmt;

use serde::Serialize;

use crate::protocol::{LATEST, VERSIONS, version_of};

/// Numbers of errors: those of the specification ("Error", version 1.1.0), and from 100 on our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is one that is not spoken here.
    IncompatibleVersion,
    /// A key of the configuration asks for what there is not.
    UnsupportedField,
    /// The container is not there; nothing is left to clean up.
    UnknownContainer,
    /// A variable of the environment.
    InvalidEnvironment,
    /// Reading or writing.
    Io,
    /// Text that is no JSON, or JSON of another shape.
    Decoding,
    /// The configuration.
    InvalidConfig,
    /// The same call may succeed later.
    TryAgainLater,
    /// No pod can be added just now.
    NotAvailable,
    /// That, and pods that are there may have no or half a network.
    NotAvailableDegraded,
    /// All addresses of the node's ranges are taken.
    NoAddress,
    /// The kernel refused something.
    Kernel,
    /// The container has a device of that name already.
    InterfaceExists,
    /// A pod's network isn't what it was made.
    CheckFailed,
    /// Not everything could be removed.
    Incomplete,
}

impl Code {
    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decoding => 6,
            Self::InvalidConfig => 7,
            Self::TryAgainLater => 11,
            Self::NotAvailable => 50,
            Self::NotAvailableDegraded => 51,
            Self::NoAddress => 100,
            Self::Kernel => 101,
            Self::InterfaceExists => 102,
            Self::CheckFailed => 103,
            Self::Incomplete => 104,
        }
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct CniError {
    /// What kind.
    pub code: Code,
    /// What was wrong with what.
    pub message: String,
    /// What to do, or what the kernel said.
    pub details: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code.number())?;
        if self.details.is_empty() {
            return Ok(());
        }
        write!(f, ": {}", self.details)
    }
}

#[derive(Serialize)]
struct Output<'e> {
    #[serde(rename = "cniVersion")]
    version: &'e str,
    code: u32,
    msg: &'e str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'e str,
}

impl CniError {
    /// An error.
    pub fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: details.into(),
        }
    }

    /// An error of reading or writing.
    pub fn io(message: impl Into<String>, error: &std::io::Error) -> Self {
        Self::new(Code::Io, message, error.to_string())
    }

    /// The kernel refused something.
    pub fn kernel(message: impl Into<String>, error: &std::io::Error) -> Self {
        Self::new(Code::Kernel, message, error.to_string())
    }

    /// As a runtime reads it. `input` is the configuration, in whose version it is answered.
    #[must_use]
    pub fn to_json(&self, input: &str) -> String {
        let version = version_of(input).filter(|version| VERSIONS.contains(&version.as_str()));
        let output = Output {
            version: version.as_deref().unwrap_or(LATEST),
            code: self.code.number(),
            msg: &self.message,
            details: &self.details,
        };
        // Strings and a number: it cannot fail.
        serde_json::to_string_pretty(&output).unwrap_or_default()
    }
}
