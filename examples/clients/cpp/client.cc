// A minimal pagewire client: streams a completion, reads the details of an error, cancels a request.

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "google/rpc/code.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "pagewire/v1/inference.grpc.pb.h"

namespace {

using google::rpc::BadRequest;
using pagewire::v1::GenerateRequest;
using pagewire::v1::GenerateResponse;
using pagewire::v1::Inference;

constexpr char kUsage[] =
    "usage: client [--address HOST:PORT|unix:PATH] [--tls-ca FILE] complete TEXT | error | cancel TEXT";
constexpr std::chrono::seconds kDeadline(60);
constexpr int kDeltasBeforeCancel = 3;

struct WrongUsage : std::invalid_argument {
  WrongUsage() : std::invalid_argument(kUsage) {}
};

// A call that ended with a status other than the one it should have.
struct CallFailed : std::runtime_error {
  explicit CallFailed(const grpc::Status& status)
      : std::runtime_error(NameOf(status) + ": " + status.error_message()) {}

  static std::string NameOf(const grpc::Status& status) {
    return google::rpc::Code_Name(static_cast<google::rpc::Code>(status.error_code()));
  }
};

std::shared_ptr<grpc::ChannelCredentials> Credentials(const std::string& tls_ca) {
  if (tls_ca.empty()) return grpc::InsecureChannelCredentials();
  std::ifstream file(tls_ca);
  if (!file) throw std::runtime_error("cannot read " + tls_ca);
  grpc::SslCredentialsOptions trusted;
  trusted.pem_root_certs.assign(std::istreambuf_iterator<char>(file), {});
  return grpc::SslCredentials(trusted);
}

// The fields a request was refused for; empty if the status names none.
std::vector<BadRequest::FieldViolation> FieldViolations(const grpc::Status& status) {
  google::rpc::Status rich;
  BadRequest bad_request;
  rich.ParseFromString(status.error_details());
  for (const auto& detail : rich.details()) {
    if (detail.UnpackTo(&bad_request)) break;
  }
  return {bad_request.field_violations().begin(), bad_request.field_violations().end()};
}

class Client {
 public:
  Client(const std::string& address, const std::string& tls_ca, const char* api_key)
      : stub_(Inference::NewStub(grpc::CreateChannel(address, Credentials(tls_ca)))) {
    context_.set_deadline(std::chrono::system_clock::now() + kDeadline);
    if (api_key != nullptr) context_.AddMetadata("authorization", std::string("Bearer ") + api_key);
  }

  void Complete(const std::string& text) {
    GenerateRequest request;
    request.set_text(text);
    request.mutable_sampling_params()->set_temperature(0);
    request.mutable_sampling_params()->set_max_tokens(64);
    const grpc::Status status = Generate(request, [](const GenerateResponse& response) {
      if (response.has_delta()) {
        std::cout << response.delta().text() << std::flush;
      } else if (response.has_finished()) {
        const auto& usage = response.finished().usage();
        std::cout << std::endl;
        std::cerr << "tokens: " << usage.prompt_tokens() << " prompt, " << usage.completion_tokens()
                  << " completion, " << usage.cached_tokens() << " cached\n";
      }
    });
    if (!status.ok()) throw CallFailed(status);
  }

  void Error() {
    GenerateRequest request;
    request.set_text("Hello");
    request.mutable_sampling_params()->set_temperature(9);
    request.mutable_sampling_params()->set_max_tokens(0);
    const grpc::Status status = Generate(request, [](const GenerateResponse&) {});
    if (status.ok()) throw std::runtime_error("an invalid request was not refused");
    const auto violations = FieldViolations(status);
    if (violations.empty()) throw CallFailed(status);
    std::cerr << CallFailed::NameOf(status) << "\n";
    for (const auto& violation : violations) {
      std::cout << violation.field() << ": " << violation.description() << "\n";
    }
  }

  void Cancel(const std::string& text) {
    GenerateRequest request;
    request.set_text(text);
    request.mutable_sampling_params()->set_max_tokens(1'000'000);
    request.mutable_sampling_params()->set_ignore_eos(true);
    int deltas = 0;
    const grpc::Status status = Generate(request, [&](const GenerateResponse& response) {
      if (!response.has_delta()) return;
      std::cout << response.delta().text() << std::flush;
      if (++deltas == kDeltasBeforeCancel) context_.TryCancel();
    });
    if (status.ok()) throw std::runtime_error("the stream ended before it was cancelled");
    if (status.error_code() != grpc::StatusCode::CANCELLED) throw CallFailed(status);
    std::cout << std::endl;
    std::cerr << CallFailed::NameOf(status) << "\n";
  }

 private:
  grpc::Status Generate(const GenerateRequest& request, const std::function<void(const GenerateResponse&)>& receive) {
    const auto reader = stub_->Generate(&context_, request);
    for (GenerateResponse response; reader->Read(&response);) receive(response);
    return reader->Finish();
  }

  std::unique_ptr<Inference::Stub> stub_;
  grpc::ClientContext context_;  // The context of the one call that a client makes.
};

void Run(std::vector<std::string> arguments) {
  std::string address = "localhost:50051", tls_ca;
  size_t next = 0;
  for (; next + 1 < arguments.size() && arguments[next].rfind("--", 0) == 0; next += 2) {
    if (arguments[next] == "--address") {
      address = arguments[next + 1];
    } else if (arguments[next] == "--tls-ca") {
      tls_ca = arguments[next + 1];
    } else {
      throw WrongUsage();
    }
  }
  const std::vector<std::string> words(arguments.begin() + next, arguments.end());
  Client client(address, tls_ca, std::getenv("PAGEWIRE_API_KEY"));
  if (words.size() == 2 && words[0] == "complete") {
    client.Complete(words[1]);
  } else if (words.size() == 1 && words[0] == "error") {
    client.Error();
  } else if (words.size() == 2 && words[0] == "cancel") {
    client.Cancel(words[1]);
  } else {
    throw WrongUsage();
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Run({argv + 1, argv + argc});
    return 0;
  } catch (const WrongUsage& wrong) {
    std::cerr << wrong.what() << "\n";
    return 2;
  } catch (const std::exception& failed) {
    std::cerr << failed.what() << "\n";
    return 1;
  }
}
