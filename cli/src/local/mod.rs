//! The installation of this machine: where its files are, what its processes are called, how they start and end.
//!
//! `layout` names paths and addresses, `generate` makes keys and configurations once, `process` knows who a process id
//! belongs to, `service` starts and stops one process; `up`, `down` and `region` are the verbs.

pub(crate) mod checks;
pub(crate) mod down;
pub(crate) mod generate;
pub(crate) mod installation;
pub(crate) mod layout;
pub(crate) mod ports;
pub(crate) mod process;
pub(crate) mod region;
pub(crate) mod service;
pub(crate) mod tenants;
pub(crate) mod tools;
pub(crate) mod up;
