//! What users do: one file per verb or pair of verbs.

pub(crate) mod audit;
pub(crate) mod auth;
pub(crate) mod backup;
pub(crate) mod connect;
pub(crate) mod create;
pub(crate) mod key;
pub(crate) mod list;
pub(crate) mod login;
pub(crate) mod people;
pub(crate) mod restore;
pub(crate) mod server;
pub(crate) mod sso;
pub(crate) mod status;
pub(crate) mod tenant;
pub(crate) mod version;

use crate::error::Result;
use crate::output::{Format, Output, document};
use serde::Serialize;

/// Prints `value` as a document when one was asked for; `false` when a table is wanted.
pub(crate) fn print_document(output: &Output, format: Format, value: &impl Serialize) -> Result<bool> {
    match format {
        Format::Json => output.print(&document::json(value)?)?,
        Format::Yaml => output.print(&document::yaml(value)?)?,
        Format::Table | Format::Wide => return Ok(false),
    }
    Ok(true)
}
