//! What can go wrong here, and whether trying again helps.

use hanse_runtime::BoxError;
use hanse_runtime::pki::PkiError;
use hanse_runtime::seal::SealError;
use hanse_state::StoreError;
use hanse_state::objects::ObjectError;

use crate::scope::Scope;

/// Why a step of a controller, or a lease, had no effect.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Another server took the lease over: nothing more may be written by its token.
    #[error("the lease of {0} is held by another server now; this server stops coordinating it")]
    Fenced(Scope),
    /// An object that the plan rests on has changed meanwhile.
    #[error("{0} has changed since the plan was made; it is planned anew")]
    Conflict(String),
    /// The council did not answer in time, or could not commit.
    #[error("the council did not take the change; is a majority of servers alive?")]
    Council(#[source] ObjectError),
    /// The tenant store did not take a fence or a removal.
    #[error("the tenant store did not take the change; is a majority of servers alive?")]
    TenantStore(#[source] StoreError),
    /// No answer in time. The change may have been made.
    #[error("no answer in time while {0}; it is tried again")]
    Timeout(&'static str),
    /// Keys and certificates of a tenant could not be made.
    #[error("the keys of a tenant cannot be made")]
    Pki(#[from] PkiError),
    /// Keys of a tenant could not be sealed or opened.
    #[error("the keys of a tenant cannot be sealed or opened; do all servers have the same seal key?")]
    Seal(#[from] SealError),
    /// An object could not be written as or read from JSON.
    #[error("{what} is not valid JSON of its kind")]
    Json {
        /// Which object.
        what: String,
        /// The parser's words.
        source: serde_json::Error,
    },
}

impl StepError {
    /// Whether the same step may succeed later without anybody's help.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Conflict(_) | Self::Timeout(_) => true,
            Self::Council(error) => error.retryable(),
            Self::TenantStore(error) => error.retryable(),
            Self::Fenced(_) | Self::Pki(_) | Self::Seal(_) | Self::Json { .. } => false,
        }
    }
}

/// Why a report of an agent was not taken in.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Longer than allowed.
    #[error(
        "the report of cluster {cluster} has {length} bytes, more than {max}; is its agent of another version?",
        max = crate::reports::REPORT_MAX
    )]
    TooLarge {
        /// The cluster.
        cluster: String,
        /// Its length in bytes.
        length: usize,
    },
    /// Not a report.
    #[error("the report of cluster {cluster} cannot be read; is its agent of another version?")]
    Json {
        /// The cluster.
        cluster: String,
        /// The parser's words.
        source: serde_json::Error,
    },
    /// It could not be stored. The next report is.
    #[error("a report could not be stored")]
    Store(#[source] StepError),
}

impl ReportError {
    /// Whether the same report may be taken in later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.retryable(),
            Self::TooLarge { .. } | Self::Json { .. } => false,
        }
    }
}

/// Why an agent did not get its certificate. The words go to the agent's operator.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Not of the form `<id>.<secret>`, unknown, or the secret is wrong. One message for all, so that nobody can probe.
    #[error("the enrolment token is not valid; create a new one for the cluster")]
    BadToken,
    /// Its time is over.
    #[error("the enrolment token of cluster {cluster:?} expired at {expires}; create a new one")]
    Expired {
        /// Cluster that it was for.
        cluster: String,
        /// Until when it was good.
        expires: hanse_api::Timestamp,
    },
    /// Another key used it.
    #[error(
        "the enrolment token of cluster {cluster:?} was used by another key; create a new one, and find out who did"
    )]
    Used {
        /// Cluster that it was for.
        cluster: String,
    },
    /// The request for a certificate cannot be read or signed.
    #[error("the certificate request is not valid")]
    Request(#[source] PkiError),
    /// The council did not answer.
    #[error("the council did not answer; is a majority of servers alive? Try again")]
    Council(#[source] ObjectError),
    /// A stored object cannot be read.
    #[error("the stored enrolment token cannot be read")]
    Json(#[source] serde_json::Error),
}

impl EnrolError {
    /// Whether the same request may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Council(error) => error.retryable(),
            Self::BadToken | Self::Expired { .. } | Self::Used { .. } | Self::Request(_) | Self::Json(_) => false,
        }
    }
}

/// Why a new server did not get its place. The words go to its operator.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Not of the form `<id>.<secret>`, unknown, not for a server, or the secret is wrong. One message for all, so that nobody
    /// can probe.
    #[error("the token is not valid, or not for a server; make a new one with `hanse server token create`")]
    BadToken,
    /// Its time is over.
    #[error(
        "the token for a server of region {region:?} expired at {expires}; make a new one with `hanse server token create`"
    )]
    Expired {
        /// Region that it was for.
        region: String,
        /// Until when it was good.
        expires: hanse_api::Timestamp,
    },
    /// Another key used it.
    #[error(
        "the token for a server of region {region:?} was used by another key; make a new one, and find out who did"
    )]
    Used {
        /// Region that it was for.
        region: String,
    },
    /// It was used for a server of another name.
    #[error("the token was used for the server {name:?}; go on with that name, or make a new token")]
    OtherName {
        /// That server.
        name: String,
    },
    /// The server that it made was removed.
    #[error(
        "the server {name:?} that this token made was removed for good; make a new token, and join with an empty folder"
    )]
    Removed {
        /// That server.
        name: String,
    },
    /// Its key was that of a server that was removed.
    #[error("the key in this folder was that of a server that was removed for good; join with an empty folder")]
    KeyRevoked,
    /// The name is another server's.
    #[error("there is a server {name:?} already; choose another name, or remove that one first")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Others kept changing the same objects.
    #[error("others joined or left at the same time; try again")]
    Contended,
    /// The request for a certificate cannot be read or signed.
    #[error("the certificate request is not valid")]
    Request(#[source] PkiError),
    /// The council did not answer.
    #[error("the council did not answer; is a majority of servers alive? Try again")]
    Council(#[source] ObjectError),
    /// A stored object cannot be read.
    #[error("a stored token or server cannot be read")]
    Json(#[source] serde_json::Error),
}

impl JoinError {
    /// Whether the same request may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Council(error) => error.retryable(),
            Self::Contended => true,
            Self::BadToken | Self::Expired { .. } | Self::Used { .. } | Self::OtherName { .. } => false,
            Self::Removed { .. } | Self::KeyRevoked | Self::NameTaken { .. } => false,
            Self::Request(_) | Self::Json(_) => false,
        }
    }
}

/// Why the first objects of a server could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The council did not answer.
    #[error("{what} cannot be stored; is a majority of servers alive?")]
    Council {
        /// Which object.
        what: String,
        /// Why.
        source: ObjectError,
    },
    /// It kept changing under our hands.
    #[error("{what} kept changing while it was being stored; try again")]
    Contended {
        /// Which object.
        what: String,
    },
    /// A stored object cannot be read.
    #[error("{what} is stored in a form that this version cannot read")]
    Json {
        /// Which object.
        what: String,
        /// The parser's words.
        source: serde_json::Error,
    },
}

impl BootstrapError {
    /// Whether a later try may succeed.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Council { source, .. } => source.retryable(),
            Self::Contended { .. } => true,
            Self::Json { .. } => false,
        }
    }
}

/// The messages of `error` and its sources, for conditions and logs.
pub(crate) fn chain(error: StepError) -> String {
    let error: BoxError = Box::new(error);
    hanse_runtime::supervisor::chain(error.as_ref())
}
