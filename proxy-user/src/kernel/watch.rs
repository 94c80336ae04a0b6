//! Tells when devices, addresses or traffic control may have changed.

use std::io;

use netlink_sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
};

/// rtnetlink's multicast groups (`enum rtnetlink_groups`): links, traffic control, IPv4 addresses,
/// IPv6 addresses.
const GROUPS: [u32; 4] = [1, 4, 5, 9];

/// A subscription. What happened is not looked at: whoever is told reads everything anew, which
/// makes lost messages harmless.
pub struct Watch {
    socket: TokioSocket,
}

impl Watch {
    /// Subscribes in the calling thread's network namespace. To miss nothing, do so before reading.
    pub fn subscribe() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket })
    }

    /// Waits until something may have changed.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(16 * 1024);
        match self.socket.recv(&mut buffer).await {
            Ok(()) => Ok(()),
            // Messages were lost because we were slow: something has changed, then.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
