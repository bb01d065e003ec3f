//! kubeconfig files: what the verbs put into them, and how that is done without touching anything else.
//!
//! `edit` is pure (text in, text out), `store` finds, locks and writes the files.

pub(crate) mod edit;
pub(crate) mod entries;
pub(crate) mod store;

pub(crate) use edit::Changes;
pub(crate) use entries::{Access, Names};
