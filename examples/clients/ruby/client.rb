#!/usr/bin/env ruby
# frozen_string_literal: true

# A minimal pagewire client: streams a completion, reads the details of an error, cancels a request.

$LOAD_PATH.unshift(File.join(__dir__, 'gen'))

require 'google/protobuf/well_known_types'
require 'google/rpc/error_details_pb'
require 'optparse'
require 'pagewire/v1/inference_services_pb'

USAGE = 'usage: client.rb [--address HOST:PORT|unix:PATH] [--tls-ca FILE] complete TEXT | error | cancel TEXT'
DEADLINE_S = 60
DELTAS_BEFORE_CANCEL = 3

# The commands, over one connection.
class Client
  include Pagewire::V1

  def initialize(address, tls_ca, api_key)
    credentials = tls_ca ? GRPC::Core::ChannelCredentials.new(File.read(tls_ca)) : :this_channel_is_insecure
    @stub = Inference::Stub.new(address, credentials)
    @metadata = api_key ? { 'authorization' => "Bearer #{api_key}" } : {}
  end

  def complete(text)
    generate(text, temperature: 0, max_tokens: 64).execute.each do |response|
      case response.event
      when :delta
        print response.delta.text
      when :finished
        usage = response.finished.usage
        puts
        warn "tokens: #{usage.prompt_tokens} prompt, #{usage.completion_tokens} completion, #{usage.cached_tokens} cached"
      end
    end
  end

  def error
    generate('Hello', temperature: 9, max_tokens: 0).execute.each { nil }
    abort 'an invalid request was not refused'
  rescue GRPC::InvalidArgument => e
    violations = field_violations(e)
    raise if violations.empty?

    warn name_of(e)
    violations.each { |violation| puts "#{violation.field}: #{violation.description}" }
  end

  def cancel(text)
    call = generate(text, max_tokens: 1_000_000, ignore_eos: true)
    deltas = 0
    call.execute.each do |response|
      next unless response.event == :delta

      print response.delta.text
      call.cancel if (deltas += 1) == DELTAS_BEFORE_CANCEL
    end
    abort 'the stream ended before it was cancelled'
  rescue GRPC::Cancelled => e
    puts
    warn name_of(e)
  end

  private

  # The call, not yet begun: `execute` begins it, `cancel` ends it.
  def generate(text, **params)
    request = GenerateRequest.new(text: text, sampling_params: SamplingParams.new(**params))
    deadline = Time.now + DEADLINE_S
    @stub.generate(request, metadata: @metadata, deadline: deadline, return_op: true)
  end

  def field_violations(error)
    details = error.to_rpc_status&.details.to_a
    details.filter_map { |detail| detail.unpack(Google::Rpc::BadRequest) }.flat_map { |bad| bad.field_violations.to_a }
  end
end

# The name of an error's status, such as INVALID_ARGUMENT.
def name_of(error)
  GRPC::Core::StatusCodes.constants.find { |name| GRPC::Core::StatusCodes.const_get(name) == error.code }
end

def main
  $stdout.sync = true
  options = { address: 'localhost:50051' }
  OptionParser.new(USAGE) do |parser|
    parser.on('--address ADDRESS') { |address| options[:address] = address }
    parser.on('--tls-ca FILE') { |file| options[:tls_ca] = file }
  end.parse!
  command, *texts = ARGV
  unless { 'complete' => 1, 'error' => 0, 'cancel' => 1 }[command] == texts.size
    warn USAGE
    exit 2
  end
  Client.new(options[:address], options[:tls_ca], ENV['PAGEWIRE_API_KEY']).public_send(command, *texts)
rescue OptionParser::ParseError
  warn USAGE
  exit 2
rescue GRPC::BadStatus => e
  abort "#{name_of(e)}: #{e.details}"
end

main
