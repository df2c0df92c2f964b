package main

import (
	"context"
	"math/rand"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pagewire "pagewire.example/pagewire/v1"
)

const maxFruitless = 8 // attempts in a row that bring nothing

// resuming hands over the responses of a request, each once. It resumes the stream where it was when its server or the
// connection is lost. Log-probabilities are not counted here.
func resuming(
	ctx context.Context, client pagewire.InferenceClient, request *pagewire.GenerateRequest,
	receive func(*pagewire.GenerateResponse),
) error {
	request.Resumes = proto.Bool(true)
	received := map[uint32]*pagewire.ResumedSequence{}
	for fruitless := 0; ; fruitless++ {
		err := stream(ctx, client, request, func(response *pagewire.GenerateResponse) {
			if started := response.GetStarted(); started != nil {
				if request.Resume != nil {
					return // A resumed stream begins with it again.
				}
				request.Resume = &pagewire.Resume{
					ModelDigest: started.ModelDigest, PromptDigest: started.PromptDigest, Seed: started.Seed,
				}
			} else {
				fruitless = 0
				note(request.Resume, received, response)
			}
			receive(response)
		})
		if status.Code(err) != codes.Unavailable || request.Resume == nil || fruitless == maxFruitless {
			return err
		}
		delay := 25 * time.Millisecond << fruitless
		if delay > time.Second {
			delay = time.Second
		}
		time.Sleep(time.Duration(rand.Int63n(int64(delay))))
	}
}

func note(resume *pagewire.Resume, received map[uint32]*pagewire.ResumedSequence, response *pagewire.GenerateResponse) {
	delta, finished := response.GetDelta(), response.GetFinished()
	if delta == nil && finished == nil {
		return
	}
	index := delta.GetIndex() + finished.GetIndex() // That of the one which is not nil.
	sequence := received[index]
	if sequence == nil {
		sequence = &pagewire.ResumedSequence{Index: index}
		received[index] = sequence
		resume.Sequences = append(resume.Sequences, sequence)
	}
	sequence.Finished = finished != nil
	sequence.TokenIds = append(sequence.TokenIds, delta.GetTokenIds()...)
	sequence.TextBytesReceived += uint64(len(delta.GetText()))
}
