//! The program that a request is for, by its host and the start of its path.

/// The requests that a program gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    hosts: Vec<String>,
    path: String,
}

impl Default for Route {
    fn default() -> Self {
        Self::new(Vec::new(), "/")
    }
}

impl Route {
    /// Those for one of `hosts`, a name or `*.NAME` for all below it; for any host if there is none. Of them, those
    /// whose path is `path` or below it.
    #[must_use]
    pub fn new(hosts: Vec<String>, path: &str) -> Self {
        Self {
            hosts: hosts.iter().map(|host| host.to_ascii_lowercase()).collect(),
            path: path.trim_end_matches('/').to_owned(),
        }
    }

    /// The closeness of a host to those of this route; `None` if it is none of them.
    fn closeness(&self, host: &str) -> Option<usize> {
        if self.hosts.is_empty() {
            return Some(0);
        }
        let of = |pattern: &String| match pattern.strip_prefix('*') {
            Some(end) => (host.len() > end.len() && host.ends_with(end)).then_some(pattern.len()),
            None => (host == pattern).then_some(usize::MAX),
        };
        self.hosts.iter().filter_map(of).max()
    }

    fn has_path(&self, path: &str) -> bool {
        let rest = path.strip_prefix(self.path.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// The reason that a request is for no program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoRoute {
    /// There is none for its host and path.
    Nobody,
    /// Its path goes up, by which a program could mean another one.
    GoesUp,
}

/// The place among `routes` of the one that a request is for. A host's own routes go before those of `*.NAME`, the
/// longest first, and those for any host; among them the longest path counts.
pub(crate) fn find<'a>(
    routes: impl Iterator<Item = &'a Route> + Clone,
    host: &str,
    path: &str,
) -> Result<usize, NoRoute> {
    let host = bare_host(host);
    // What is asked of the server as a whole (OPTIONS *) has no path.
    let path = path.strip_prefix('*').unwrap_or(path);
    let path = path.split('?').next().unwrap_or_default();
    let closest = routes
        .clone()
        .filter_map(|route| route.closeness(&host))
        .max();
    let closest = closest.ok_or(NoRoute::Nobody)?;
    let of_host = routes
        .enumerate()
        .filter(|(_, route)| route.closeness(&host) == Some(closest));
    if of_host.clone().nth(1).is_some() && goes_up(path) {
        return Err(NoRoute::GoesUp);
    }
    of_host
        .filter(|(_, route)| route.has_path(path))
        .max_by_key(|(_, route)| route.path.len())
        .map(|(place, _)| place)
        .ok_or(NoRoute::Nobody)
}

/// A host without its port, in small letters.
fn bare_host(host: &str) -> String {
    let end = match host.rfind(']') {
        Some(end) => end + 1,
        None => host.find(':').unwrap_or(host.len()),
    };
    let bare = host.get(..end).unwrap_or(host);
    bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase()
}

/// True if a part of the path is `.` or `..`, written in any way.
fn goes_up(path: &str) -> bool {
    path.split('/').any(|part| {
        let plain = part.to_ascii_lowercase().replace("%2e", ".");
        // What follows a semicolon some take for parameters of the part.
        let name = plain.split(';').next().unwrap_or_default();
        name == "." || name == ".."
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(hosts: &[&str], path: &str) -> Route {
        Route::new(hosts.iter().map(|host| (*host).to_owned()).collect(), path)
    }

    #[test]
    fn the_closest_host_counts_and_then_the_longest_path() {
        let routes = [
            route(&[], "/"),
            route(&["a.example", "b.example"], "/"),
            route(&["a.example"], "/api/"),
            route(&["*.example"], "/"),
            route(&["*.deep.example"], "/only"),
            route(&["a.example"], "/api/v2"),
        ];
        let found = |host: &str, path: &str| find(routes.iter(), host, path);
        for (host, path, wanted) in [
            ("elsewhere", "/", 0),
            ("", "/api", 0),
            ("A.Example:8080", "/", 1),
            ("a.example.", "/apis", 1),
            ("b.example", "/api", 1),
            ("a.example", "/api", 2),
            ("a.example", "/api/x?/../y", 2),
            ("a.example", "/api/v2", 5),
            ("a.example", "/api/v2/x", 5),
            ("a.example", "/api/v22", 2),
            ("a.example", "*", 1),
            ("c.example", "/x", 3),
            (".example", "/x", 0),
            ("c.deep.example", "/only", 4),
            ("[::1]:80", "/", 0),
        ] {
            assert_eq!(found(host, path), Ok(wanted), "{host} {path}");
        }
        // The routes of another host do not stand in.
        assert_eq!(found("c.deep.example", "/"), Err(NoRoute::Nobody));
        for path in [
            "/api/../x",
            "/x/..",
            "/%2e%2E/api",
            "/./api",
            "/.%2e;a=b/api",
        ] {
            assert_eq!(found("a.example", path), Err(NoRoute::GoesUp), "{path}");
            // Where there is one program, it is for that to understand.
            assert_eq!(found("c.example", path), Ok(3), "{path}");
        }
        assert_eq!(found("a.example", "/..a/...?.."), Ok(1));
        let one = [route(&["a.example"], "/")];
        assert_eq!(find(one.iter(), "b.example", "/"), Err(NoRoute::Nobody));
    }
}
