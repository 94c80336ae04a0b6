//! Both ends over a pipe.

use tokio::io::duplex;
use tokio::time::timeout;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

fn settings() -> Settings {
    Settings {
        traffic: Arc::default(),
        window: LEAST,
        round_trip_us: Arc::default(),
    }
}

type Pair = (SendStream<Bytes>, RecvStream);

/// Both ends of the streams that a test opens.
struct Ends {
    opener: Opener,
    asked: tokio::sync::mpsc::Receiver<Asked>,
}

async fn ends() -> Ends {
    let (node, server) = duplex(256 * 1024);
    let (send, asked) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        let mut acceptor = Acceptor::begin(server, settings()).await.unwrap();
        while let Some(Ok(asked)) = acceptor.next().await {
            send.send(asked).await.unwrap();
        }
    });
    let (opener, drive) = begin(node, settings()).await.unwrap();
    tokio::spawn(drive);
    Ends { opener, asked }
}

impl Ends {
    async fn pair(&mut self) -> (Pair, Pair) {
        let client = "[2001:db8::7]:4711".parse().unwrap();
        let opened = self.opener.open(37_140, client).await.unwrap();
        let asked = timeout(LIMIT, self.asked.recv()).await.unwrap().unwrap();
        assert_eq!(asked.port, 37_140);
        assert_eq!(asked.client, Some(client));
        let far = asked.accept().unwrap();
        let answer = opened.answer.await.unwrap();
        ((opened.to, answer.into_body()), far)
    }
}

/// The next bytes; an end may come with a frame that has none.
async fn text(from: &mut RecvStream) -> Option<Vec<u8>> {
    loop {
        let data = timeout(LIMIT, poll_fn(|cx| from.poll_data(cx)))
            .await
            .unwrap()?;
        let data = data.unwrap();
        from.flow_control().release_capacity(data.len()).unwrap();
        if !data.is_empty() {
            return Some(data.to_vec());
        }
    }
}

#[tokio::test]
async fn an_end_is_an_end_and_the_other_direction_goes_on() {
    let mut ends = ends().await;
    let ((mut to, mut from), (mut back, mut there)) = ends.pair().await;
    to.send_data(Bytes::from_static(b"ask"), true).unwrap();
    assert_eq!(text(&mut there).await.unwrap(), b"ask");
    assert_eq!(text(&mut there).await, None);
    back.send_data(Bytes::from_static(b"answer"), true).unwrap();
    assert_eq!(text(&mut from).await.unwrap(), b"answer");
    assert_eq!(text(&mut from).await, None);
}

#[tokio::test]
async fn a_reset_is_a_reset_even_after_our_own_end() {
    let mut ends = ends().await;
    let ((mut to, mut from), (mut back, mut there)) = ends.pair().await;
    to.send_data(Bytes::new(), true).unwrap();
    assert_eq!(text(&mut there).await, None);
    back.send_reset(Reason::CANCEL);
    let data = timeout(LIMIT, poll_fn(|cx| from.poll_data(cx))).await;
    assert!(data.unwrap().unwrap().unwrap_err().is_reset());
}

#[tokio::test]
async fn a_refusal_says_why() {
    let mut ends = ends().await;
    let client = "192.0.2.1:1".parse().unwrap();
    let opened = ends.opener.open(1, client).await.unwrap();
    ends.asked
        .recv()
        .await
        .unwrap()
        .refuse(Reason::CONNECT_ERROR);
    let error = opened.answer.await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CONNECT_ERROR));
}

/// Two hundred streams that nobody reads hold a window each, and one more is as fast as ever.
#[tokio::test]
async fn streams_that_nobody_reads_stop_no_other() {
    let mut ends = ends().await;
    let mut stuck = Vec::new();
    for _ in 0..200 {
        let ((mut to, from), far) = ends.pair().await;
        let size = LEAST as usize;
        to.reserve_capacity(size);
        to.send_data(Bytes::from(vec![0; size]), false).unwrap();
        stuck.push((to, from, far));
    }
    let ((mut to, _from), (_back, mut there)) = ends.pair().await;
    for number in 0..100_u8 {
        to.send_data(Bytes::from(vec![number]), false).unwrap();
        assert_eq!(text(&mut there).await.unwrap(), [number]);
    }
}

#[tokio::test]
async fn the_way_is_measured() {
    let (node, server) = duplex(1_024);
    let shown = settings();
    let round_trip = Arc::clone(&shown.round_trip_us);
    tokio::spawn(async move {
        let mut acceptor = Acceptor::begin(server, settings()).await.unwrap();
        while let Some(Ok(_)) = acceptor.next().await {}
    });
    let (_opener, drive) = begin(node, shown).await.unwrap();
    tokio::spawn(drive);
    let measured = async {
        while round_trip.load(Ordering::Relaxed) == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, measured).await.unwrap();
}
