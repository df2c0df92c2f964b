// A minimal pagewire client: streams a completion that outlasts its server, reads the details of an error, cancels.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pagewire "pagewire.example/pagewire/v1"
)

const (
	deadline           = 60 * time.Second
	deltasBeforeCancel = 3
)

func main() {
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: client [--address HOST:PORT|unix:PATH] [--tls-ca FILE] complete TEXT | error | cancel TEXT")
	}
	address := flag.String("address", "localhost:50051", "where the server is")
	tlsCA := flag.String("tls-ca", "", "certificates to trust; plaintext without it")
	flag.Parse()
	command, text := flag.Arg(0), flag.Arg(1)
	numArgs, known := map[string]int{"complete": 2, "error": 1, "cancel": 2}[command]
	if !known || flag.NArg() != numArgs {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*address, *tlsCA, command, text); err != nil {
		if failed, ok := status.FromError(err); ok {
			fmt.Fprintf(os.Stderr, "%s: %s\n", code.Code(failed.Code()), failed.Message())
		} else {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
}

func run(address, tlsCA, command, text string) error {
	connection, err := connect(address, tlsCA)
	if err != nil {
		return err
	}
	defer connection.Close()
	client := pagewire.NewInferenceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if key := os.Getenv("PAGEWIRE_API_KEY"); key != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
	}
	switch command {
	case "complete":
		return complete(ctx, client, text)
	case "error":
		return showError(ctx, client)
	default:
		return cancelEarly(ctx, client, text)
	}
}

func connect(address, tlsCA string) (*grpc.ClientConn, error) {
	if tlsCA == "" {
		return grpc.Dial(address, grpc.WithInsecure())
	}
	trusted, err := credentials.NewClientTLSFromFile(tlsCA, "")
	if err != nil {
		return nil, err
	}
	return grpc.Dial(address, grpc.WithTransportCredentials(trusted))
}

func prompted(text string, params *pagewire.SamplingParams) *pagewire.GenerateRequest {
	return &pagewire.GenerateRequest{
		Prompt:   &pagewire.GenerateRequest_Text{Text: text},
		Decoding: &pagewire.GenerateRequest_SamplingParams{SamplingParams: params},
	}
}

func complete(ctx context.Context, client pagewire.InferenceClient, text string) error {
	params := &pagewire.SamplingParams{Temperature: proto.Float32(0), MaxTokens: proto.Int32(64)}
	return resuming(ctx, client, prompted(text, params), func(response *pagewire.GenerateResponse) {
		switch event := response.Event.(type) {
		case *pagewire.GenerateResponse_Delta:
			fmt.Print(event.Delta.Text)
		case *pagewire.GenerateResponse_Finished:
			usage := event.Finished.Usage
			fmt.Println()
			fmt.Fprintf(os.Stderr, "tokens: %d prompt, %d completion, %d cached\n",
				usage.PromptTokens, usage.CompletionTokens, usage.CachedTokens)
		}
	})
}

func showError(ctx context.Context, client pagewire.InferenceClient) error {
	params := &pagewire.SamplingParams{Temperature: proto.Float32(9), MaxTokens: proto.Int32(0)}
	err := stream(ctx, client, prompted("Hello", params), func(*pagewire.GenerateResponse) {})
	if err == nil {
		return errors.New("an invalid request was not refused")
	}
	refusal := status.Convert(err)
	for _, detail := range refusal.Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			fmt.Fprintln(os.Stderr, code.Code(refusal.Code()))
			for _, violation := range bad.FieldViolations {
				fmt.Printf("%s: %s\n", violation.Field, violation.Description)
			}
			return nil
		}
	}
	return err
}

func cancelEarly(ctx context.Context, client pagewire.InferenceClient, text string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	params := &pagewire.SamplingParams{MaxTokens: proto.Int32(1_000_000), IgnoreEos: proto.Bool(true)}
	deltas := 0
	err := stream(ctx, client, prompted(text, params), func(response *pagewire.GenerateResponse) {
		if delta := response.GetDelta(); delta != nil {
			fmt.Print(delta.Text)
			if deltas++; deltas == deltasBeforeCancel {
				cancel()
			}
		}
	})
	switch {
	case err == nil:
		return errors.New("the stream ended before it was cancelled")
	case status.Code(err) != codes.Canceled:
		return err
	}
	fmt.Println()
	fmt.Fprintln(os.Stderr, code.Code_CANCELLED)
	return nil
}

// stream calls Generate and hands over each response; it returns when the stream ends.
func stream(
	ctx context.Context, client pagewire.InferenceClient, request *pagewire.GenerateRequest,
	receive func(*pagewire.GenerateResponse),
) error {
	call, err := client.Generate(ctx, request)
	if err != nil {
		return err
	}
	for {
		response, err := call.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		receive(response)
	}
}
