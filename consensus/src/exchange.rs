//! A long-lived stream to another server on which one question is under way at a time.
//!
//! Heartbeats and questions for the read index come by the thousand while members are read; a call for each would cost a
//! stream's setting up and taking down on both sides, which is most of what they cost.

use futures::{Stream, StreamExt};
use std::fmt;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

/// The stream, both ways.
struct Line<Q, S> {
    questions: mpsc::Sender<Q>,
    answers: S,
}

impl<Q, A, S> Line<Q, S>
where
    S: Stream<Item = Result<A, Status>> + Unpin,
{
    async fn ask(&mut self, question: Q) -> Result<A, Status> {
        self.questions.try_send(question).map_err(|_| ended())?;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<A, Status> {
        self.answers.next().await.ok_or_else(ended)?
    }
}

fn ended() -> Status {
    Status::unavailable("the other server ended the stream")
}

/// Keeps the stream from question to question, and makes it anew when it is gone.
pub(crate) struct Exchange<Q, S> {
    kept: Mutex<Option<Line<Q, S>>>,
}

impl<Q, S> fmt::Debug for Exchange<Q, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}

impl<Q, S> Default for Exchange<Q, S> {
    fn default() -> Self {
        Self { kept: Mutex::new(None) }
    }
}

impl<Q, A, S> Exchange<Q, S>
where
    Q: Clone,
    S: Stream<Item = Result<A, Status>> + Unpin,
{
    /// Asks on the stream that is there, or on one that `open` makes. A kept stream may have ended unnoticed, so its failure is
    /// followed by one try on a new one: questions are of a kind that may be asked twice. Dropping the future ends the stream, for
    /// the next answer on it would be to the wrong question.
    pub(crate) async fn ask<F>(&self, question: Q, open: impl FnOnce(ReceiverStream<Q>) -> F) -> Result<A, Status>
    where
        F: Future<Output = Result<Response<S>, Status>>,
    {
        let mut kept = self.kept.lock().await;
        if let Some(mut line) = kept.take()
            && let Ok(answer) = line.ask(question.clone()).await
        {
            *kept = Some(line);
            return Ok(answer);
        }
        let (questions, stream) = mpsc::channel(1);
        // With the stream's head and not after its answer: that would be a second round trip, and a heartbeat that takes
        // two is given up before it is over where one takes half of its interval.
        questions.try_send(question).map_err(|_| ended())?;
        let answers = open(ReceiverStream::new(stream)).await?.into_inner();
        let mut line = Line { questions, answers };
        let answer = line.answer().await?;
        *kept = Some(line);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream::BoxStream;
    use std::sync::atomic::{AtomicUsize, Ordering};

    type Answers = BoxStream<'static, Result<(usize, u32), Status>>;

    /// Answers each question with itself and the number of the stream it came on; a stream ends after `most` questions.
    struct Echo {
        opened: AtomicUsize,
        most: usize,
    }

    impl Echo {
        async fn open(&self, questions: ReceiverStream<u32>) -> Result<Response<Answers>, Status> {
            let number = self.opened.fetch_add(1, Ordering::Relaxed) + 1;
            let answers = questions.take(self.most).map(move |question| Ok((number, question)));
            Ok(Response::new(answers.boxed()))
        }
    }

    #[tokio::test]
    async fn one_stream_serves_until_it_ends_and_then_the_next_does() {
        let echo = Echo {
            opened: AtomicUsize::new(0),
            most: 3,
        };
        let exchange: Exchange<u32, Answers> = Exchange::default();
        let mut answers = Vec::new();
        for question in 0..5 {
            answers.push(exchange.ask(question, |questions| echo.open(questions)).await.unwrap());
        }
        assert_eq!(answers, [(1, 0), (1, 1), (1, 2), (2, 3), (2, 4)]);
    }

    #[tokio::test]
    async fn an_answer_nobody_waited_for_is_never_taken_for_the_next() {
        let exchange: Exchange<u32, Answers> = Exchange::default();
        let late = |questions: ReceiverStream<u32>| async {
            let answers: Answers = questions.then(|_| futures::future::pending()).boxed();
            Ok(Response::new(answers))
        };
        let gone = futures::FutureExt::now_or_never(exchange.ask(1, late));
        assert!(gone.is_none(), "the first question has no answer");
        let echo = Echo {
            opened: AtomicUsize::new(1),
            most: 3,
        };
        let answer = exchange.ask(2, |questions| echo.open(questions)).await.unwrap();
        assert_eq!(answer, (2, 2), "the second is asked on a stream of its own");
    }

    /// The other end answers the head when it has read the question: nobody may wait for the one before the other.
    #[tokio::test]
    async fn the_first_question_goes_out_with_the_stream() {
        let exchange: Exchange<u32, Answers> = Exchange::default();
        let slow = |mut questions: ReceiverStream<u32>| async move {
            let first = questions.next().await.ok_or_else(ended)?;
            let answers: Answers = futures::stream::iter([Ok((1, first))]).boxed();
            Ok(Response::new(answers))
        };
        let answer = futures::FutureExt::now_or_never(exchange.ask(7, slow));
        assert_eq!(answer.expect("no round trip is waited for").unwrap(), (1, 7));
    }

    #[tokio::test]
    async fn a_fault_of_a_new_stream_is_told() {
        let exchange: Exchange<u32, Answers> = Exchange::default();
        let refuse = |_: ReceiverStream<u32>| async { Err(Status::unimplemented("not here")) };
        let fault = exchange.ask(1, refuse).await.unwrap_err();
        assert_eq!(fault.code(), tonic::Code::Unimplemented);
    }
}
