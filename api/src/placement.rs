//! Which connected cluster a new tenant goes to: a pure choice over candidates.

/// A connected cluster as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Name.
    pub cluster: String,
    /// Region.
    pub region: String,
    /// Its agent is connected.
    pub online: bool,
    /// Closed for new tenants.
    pub unusable: bool,
    /// Allowed by the project.
    pub allowed: bool,
    /// Tenants that it hosts.
    pub tenants: usize,
}

/// What the tenant asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Only this cluster, when named.
    pub cluster: Option<String>,
    /// Only this region, when named.
    pub region: Option<String>,
}

/// The fitting cluster with the fewest tenants (ties by name), or why there is none.
pub fn choose<'a>(wish: &Wish, candidates: &'a [Candidate]) -> Result<&'a Candidate, String> {
    let wanted = |c: &&Candidate| {
        wish.cluster.as_deref().is_none_or(|name| name == c.cluster)
            && wish.region.as_deref().is_none_or(|region| region == c.region)
    };
    candidates
        .iter()
        .filter(wanted)
        .filter(|c| c.online && !c.unusable && c.allowed)
        .min_by(|a, b| (a.tenants, &a.cluster).cmp(&(b.tenants, &b.cluster)))
        .ok_or_else(|| explain(wish, candidates))
}

fn explain(wish: &Wish, candidates: &[Candidate]) -> String {
    let wanted: Vec<&Candidate> = candidates
        .iter()
        .filter(|c| wish.cluster.as_deref().is_none_or(|name| name == c.cluster))
        .filter(|c| wish.region.as_deref().is_none_or(|region| region == c.region))
        .collect();
    if wanted.is_empty() {
        let asked = match (&wish.cluster, &wish.region) {
            (Some(cluster), _) => format!("no connected cluster is named {cluster:?}"),
            (None, Some(region)) => format!("no connected cluster is in region {region:?}"),
            (None, None) => "no cluster is connected".to_owned(),
        };
        return format!("{asked}; connect one, or choose another");
    }
    let faults: Vec<String> = wanted
        .iter()
        .map(|c| {
            let why = match (c.allowed, c.unusable, c.online) {
                (false, _, _) => "not allowed by the project",
                (true, true, _) => "closed for new tenants (spec.unusable)",
                (true, false, _) => "its agent is not connected",
            };
            format!("{}: {why}", c.cluster)
        })
        .collect();
    format!("no cluster fits: {}", faults.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(cluster: &str, tenants: usize) -> Candidate {
        Candidate {
            cluster: cluster.into(),
            region: cluster.into(),
            online: true,
            unusable: false,
            allowed: true,
            tenants,
        }
    }

    #[test]
    fn fewest_tenants_win_and_ties_go_by_name() {
        let all = [candidate("us", 1), candidate("eu", 1), candidate("ap", 2)];
        assert_eq!(choose(&Wish::default(), &all).unwrap().cluster, "eu");
        let us = Wish {
            region: Some("us".into()),
            cluster: None,
        };
        assert_eq!(choose(&us, &all).unwrap().cluster, "us");
    }

    #[test]
    fn each_refusal_says_why() {
        let mut eu = candidate("eu", 0);
        eu.online = false;
        let mut us = candidate("us", 0);
        us.unusable = true;
        let mut ap = candidate("ap", 0);
        ap.allowed = false;
        let why = choose(&Wish::default(), &[eu, us, ap]).unwrap_err();
        for part in ["eu: its agent is not connected", "us: closed", "ap: not allowed"] {
            assert!(why.contains(part), "{why}");
        }
        let unknown = Wish {
            region: Some("xx".into()),
            cluster: None,
        };
        assert!(choose(&unknown, &[]).unwrap_err().contains("region \"xx\""));
    }
}
