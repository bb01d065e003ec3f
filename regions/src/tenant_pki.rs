//! Keys and certificates of a tenant's control plane: made once, when the tenant is placed, and kept sealed in the
//! council, so that every region can host the tenant without anybody carrying files around.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hanse_api::Timestamp;
use hanse_api::intent::TenantPki;
use hanse_runtime::pki::{Ca, LeafSpec, generate_key_pair};
use hanse_runtime::rng::Rng;
use hanse_runtime::seal::{SealError, Sealer};

use crate::error::StepError;

/// Lifetime of everything in it. Rotation comes with a later issue; until then it must outlive the tenant.
const DAYS: u32 = 3650;
const WHAT: &str = "the PKI of a tenant";

/// New keys and certificates for the tenant with the key space `tenant`.
pub fn generate(tenant: &str, now: Timestamp) -> Result<TenantPki, StepError> {
    let ca = Ca::generate(&format!("hanse tenant {tenant}"), DAYS, now)?;
    let client = |common_name: &str, organization: Option<&str>| {
        let spec = LeafSpec {
            common_name: common_name.to_owned(),
            organizations: organization.into_iter().map(str::to_owned).collect(),
            client: true,
            days: DAYS,
            ..LeafSpec::default()
        };
        ca.issue(&spec, now)
    };
    Ok(TenantPki {
        admin: client("hanse:agent", Some("system:masters"))?,
        controller_manager: client("system:kube-controller-manager", None)?,
        scheduler: client("system:kube-scheduler", None)?,
        kubelet_client: client("kube-apiserver-kubelet-client", Some("system:masters"))?,
        service_account: generate_key_pair()?,
        ca: ca.key_pair(),
    })
}

/// Seals `pki` for the tenant with the key space `tenant`; opens for no other.
pub fn seal(sealer: &Sealer, rng: &dyn Rng, tenant: &str, pki: &TenantPki) -> Result<String, StepError> {
    let plain = serde_json::to_vec(pki).map_err(|source| StepError::Json {
        what: WHAT.to_owned(),
        source,
    })?;
    Ok(STANDARD.encode(sealer.seal(rng, &plain, tenant.as_bytes())?))
}

/// Opens what [`seal`] made for the same tenant.
pub fn open(sealer: &Sealer, tenant: &str, sealed: &str) -> Result<TenantPki, StepError> {
    let sealed = STANDARD.decode(sealed).map_err(|_| SealError::Open)?;
    let plain = sealer.open(&sealed, tenant.as_bytes())?;
    serde_json::from_slice(&plain).map_err(|source| StepError::Json {
        what: WHAT.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::rng::SeededRng;

    #[test]
    fn opens_only_for_its_own_tenant() {
        let rng = SeededRng::new(1);
        let sealer = Sealer::from_key(&Sealer::generate(&rng)).unwrap();
        let pki = generate("t1", Timestamp::from_millis(1_790_000_000_000)).unwrap();
        let sealed = seal(&sealer, &rng, "t1", &pki).unwrap();
        assert_eq!(open(&sealer, "t1", &sealed).unwrap(), pki);
        assert!(open(&sealer, "t2", &sealed).is_err());
        assert!(!sealed.contains("PRIVATE"));
    }
}
