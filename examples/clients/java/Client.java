import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import io.grpc.ChannelCredentials;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.Iterator;
import java.util.List;
import java.util.concurrent.TimeUnit;
import pagewire.v1.InferenceGrpc;
import pagewire.v1.InferenceGrpc.InferenceBlockingStub;
import pagewire.v1.InferenceOuterClass.GenerateRequest;
import pagewire.v1.InferenceOuterClass.GenerateResponse;
import pagewire.v1.InferenceOuterClass.SamplingParams;
import pagewire.v1.InferenceOuterClass.Usage;

/** A minimal pagewire client: streams a completion, reads the details of an error, cancels a request. */
public final class Client {
  private static final String USAGE =
      "usage: client [--address HOST:PORT] [--tls-ca FILE] complete TEXT | error | cancel TEXT";
  private static final int DEADLINE_S = 60;
  private static final int DELTAS_BEFORE_CANCEL = 3;

  private final InferenceBlockingStub stub;

  private Client(InferenceBlockingStub stub) {
    this.stub = stub;
  }

  public static void main(String[] arguments) {
    System.exit(run(arguments));
  }

  private static int run(String[] arguments) {
    try {
      runCommand(new ArrayDeque<>(List.of(arguments)));
      return 0;
    } catch (WrongUsage wrong) {
      System.err.println(USAGE);
      return 2;
    } catch (StatusRuntimeException failed) {
      System.err.println(failed.getStatus().getCode() + ": " + failed.getStatus().getDescription());
      return 1;
    } catch (IOException | IllegalStateException failed) {
      System.err.println(failed.getMessage());
      return 1;
    }
  }

  private static void runCommand(Deque<String> words) throws IOException {
    String address = "localhost:50051";
    ChannelCredentials credentials = InsecureChannelCredentials.create();
    while (words.size() > 1 && words.peek().startsWith("--")) {
      switch (words.pop()) {
        case "--address" -> address = words.pop();
        case "--tls-ca" -> credentials = TlsChannelCredentials.newBuilder().trustManager(new File(words.pop())).build();
        default -> throw new WrongUsage();
      }
    }
    String command = words.isEmpty() ? "" : words.pop();
    if (words.size() != (command.equals("error") ? 0 : 1)) {
      throw new WrongUsage();
    }
    ManagedChannel channel = Grpc.newChannelBuilder(address, credentials).build();
    try {
      Client client = new Client(stubOf(channel, System.getenv("PAGEWIRE_API_KEY")));
      switch (command) {
        case "complete" -> client.complete(words.pop());
        case "error" -> client.error();
        case "cancel" -> client.cancel(words.pop());
        default -> throw new WrongUsage();
      }
    } finally {
      channel.shutdownNow();
    }
  }

  private static InferenceBlockingStub stubOf(ManagedChannel channel, String apiKey) {
    InferenceBlockingStub stub = InferenceGrpc.newBlockingStub(channel);
    if (apiKey == null) {
      return stub;
    }
    Metadata headers = new Metadata();
    headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + apiKey);
    return stub.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers));
  }

  private void complete(String text) {
    Iterator<GenerateResponse> responses =
        generate(text, SamplingParams.newBuilder().setTemperature(0).setMaxTokens(64));
    while (responses.hasNext()) {
      GenerateResponse response = responses.next();
      switch (response.getEventCase()) {
        case DELTA -> show(response);
        case FINISHED -> {
          Usage usage = response.getFinished().getUsage();
          System.out.println();
          System.err.printf(
              "tokens: %d prompt, %d completion, %d cached%n",
              usage.getPromptTokens(), usage.getCompletionTokens(), usage.getCachedTokens());
        }
        default -> {}
      }
    }
  }

  private void error() throws InvalidProtocolBufferException {
    try {
      generate("Hello", SamplingParams.newBuilder().setTemperature(9).setMaxTokens(0)).forEachRemaining(response -> {});
    } catch (StatusRuntimeException refusal) {
      List<BadRequest.FieldViolation> violations = fieldViolations(refusal);
      if (violations.isEmpty()) {
        throw refusal;
      }
      System.err.println(refusal.getStatus().getCode());
      for (BadRequest.FieldViolation violation : violations) {
        System.out.println(violation.getField() + ": " + violation.getDescription());
      }
      return;
    }
    throw new IllegalStateException("an invalid request was not refused");
  }

  private void cancel(String text) {
    Context.CancellableContext context = Context.current().withCancellation();
    try {
      context.run(() -> {
        Iterator<GenerateResponse> responses =
            generate(text, SamplingParams.newBuilder().setMaxTokens(1_000_000).setIgnoreEos(true));
        for (int deltas = 0; responses.hasNext(); ) {
          GenerateResponse response = responses.next();
          show(response);
          if (response.hasDelta() && ++deltas == DELTAS_BEFORE_CANCEL) {
            context.cancel(null);
          }
        }
      });
    } catch (StatusRuntimeException ended) {
      if (ended.getStatus().getCode() != Status.Code.CANCELLED) {
        throw ended;
      }
      System.out.println();
      System.err.println(ended.getStatus().getCode());
      return;
    }
    throw new IllegalStateException("the stream ended before it was cancelled");
  }

  private Iterator<GenerateResponse> generate(String text, SamplingParams.Builder params) {
    GenerateRequest request = GenerateRequest.newBuilder().setText(text).setSamplingParams(params).build();
    return stub.withDeadlineAfter(DEADLINE_S, TimeUnit.SECONDS).generate(request);
  }

  private static void show(GenerateResponse response) {
    System.out.print(response.getDelta().getText());
    System.out.flush();
  }

  /** The fields a request was refused for; empty if the error names none. */
  private static List<BadRequest.FieldViolation> fieldViolations(StatusRuntimeException error)
      throws InvalidProtocolBufferException {
    List<BadRequest.FieldViolation> violations = new ArrayList<>();
    for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
      if (detail.is(BadRequest.class)) {
        violations.addAll(detail.unpack(BadRequest.class).getFieldViolationsList());
      }
    }
    return violations;
  }

  private static final class WrongUsage extends RuntimeException {}
}
