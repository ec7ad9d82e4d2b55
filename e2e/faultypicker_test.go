package e2e

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	keyDestination = "x-gateway-destination-endpoint"
	keyServed      = "x-gateway-destination-endpoint-served"
	// headerPicker is what a picker puts its name into: of requests, so that the pod sees
	// who picked it, and of the responses that it is shown.
	headerPicker = "x-test-picker"
	// headerThink is how long a picker thinks before it answers, a Go duration.
	headerThink = "x-test-picker-think"
)

// faultyPicker is an endpoint picker that does what its script says. Of the zero script it
// does as the pickers that ship do: it runs a plain grpc-go server (4 MiB a message, no
// health service, GOAWAY for those who ping), waits for the end of the body, sets every
// header again from a map, in both directions, and never answers trailers.
type faultyPicker struct {
	extprocv3.UnimplementedExternalProcessorServer
	Name    string
	Address string
	CA      string // PEM of its certificate; for the name picker.test

	tell    func() // called with each stream, if not nil
	script  atomic.Pointer[script]
	asked   atomic.Int64 // streams
	biggest atomic.Int64 // of the body messages, bytes

	mu     sync.Mutex
	served []string // what the response phases said, in order
	subset []string // the hints of the requests
}

// script is a behaviour, the same for every stream that begins under it.
type script struct {
	Endpoint         string                              // what it picks
	Header, Metadata *string                             // what it says instead in one of the two places; "": nothing
	At               map[phase]func(*faultyStream) error // done at a phase; an error ends the stream
	Rewrite, Respond func([]byte) []byte                 // of the request's body; of each piece of the response's
	Eager            bool                                // answers headers and each piece as they come
	Own              *extprocv3.ImmediateResponse        // its answer to every request
	Reply            *extprocv3.ProcessingResponse       // sent in place of the answer to the headers
	Set              []*corev3.HeaderValueOption         // more headers of the request
}

// phase is a moment of a stream at which a script can do something.
type phase int

const (
	atHeaders      phase = iota // the request's headers came in
	beforeAnswer                // it could answer now
	afterHeaders                // it has answered the headers
	midBody                     // it has given back a part of the body
	atResponse                  // the response's headers came in
	atResponseBody              // a piece of the response came in
)

// errEnd ends a stream with OK.
var errEnd = errors.New("end with OK")

func fails(err error) func(*faultyStream) error { return func(*faultyStream) error { return err } }

// hangs never answers, and reads no more. The process still answers probes.
func hangs(x *faultyStream) error {
	<-x.Context().Done()
	return x.Context().Err()
}

// says sends a message and then hangs.
func says(m *extprocv3.ProcessingResponse) func(*faultyStream) error {
	return func(x *faultyStream) error {
		if err := x.Send(m); err != nil {
			return err
		}
		return hangs(x)
	}
}

// startFaulty serves a picker until the test ends. Without TLS if plaintext.
func startFaulty(t testing.TB, name string, plaintext bool) *faultyPicker {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &faultyPicker{Name: name}
	p.script.Store(&script{})
	s, err := p.serve(l, plaintext)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return p
}

func (p *faultyPicker) serve(l net.Listener, plaintext bool) (*grpc.Server, error) {
	p.Address = l.Addr().String()
	var opts []grpc.ServerOption
	if !plaintext {
		cert, ca, err := selfSigned()
		if err != nil {
			return nil, err
		}
		p.CA = ca
		opts = append(opts, grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	}
	s := grpc.NewServer(opts...)
	extprocv3.RegisterExternalProcessorServer(s, p)
	go s.Serve(l)
	return s, nil
}

// Do sets the script.
func (p *faultyPicker) Do(s script) { p.script.Store(&s) }

// Served returns what the response phases said so far.
func (p *faultyPicker) Served() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.served...)
}

// Subset returns the subset hints of the requests so far.
func (p *faultyPicker) Subset() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.subset...)
}

// Process implements the Endpoint Picker Protocol.
func (p *faultyPicker) Process(s extprocv3.ExternalProcessor_ProcessServer) error {
	p.asked.Add(1)
	if p.tell != nil {
		p.tell()
	}
	x := &faultyStream{ExternalProcessor_ProcessServer: s, p: p, script: p.script.Load()}
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := x.take(m); errors.Is(err, errEnd) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// faultyStream is one stream of a picker.
type faultyStream struct {
	extprocv3.ExternalProcessor_ProcessServer
	p        *faultyPicker
	script   *script
	headers  map[string]string
	body     []byte
	answered bool
}

func (x *faultyStream) at(ph phase) error {
	if do := x.script.At[ph]; do != nil {
		return do(x)
	}
	return nil
}

func (x *faultyStream) take(m *extprocv3.ProcessingRequest) error {
	switch v := m.Request.(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		return x.requestHeaders(m, v.RequestHeaders)
	case *extprocv3.ProcessingRequest_RequestBody:
		return x.requestBody(v.RequestBody)
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		return x.responseHeaders(m, v.ResponseHeaders)
	case *extprocv3.ProcessingRequest_ResponseBody:
		if err := x.at(atResponseBody); err != nil {
			return err
		}
		b := v.ResponseBody.Body
		if x.script.Respond != nil {
			b = x.script.Respond(b)
		}
		return x.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: piece(b, v.ResponseBody.EndOfStream)}})
	}
	return nil // trailers
}

func (x *faultyStream) requestHeaders(m *extprocv3.ProcessingRequest, h *extprocv3.HttpHeaders) error {
	x.headers = lastValues(h)
	hint := m.GetMetadataContext().GetFilterMetadata()["envoy.lb.subset_hint"].GetFields()["x-gateway-destination-endpoint-subset"]
	if hint != nil {
		x.p.mu.Lock()
		x.p.subset = append(x.p.subset, hint.GetStringValue())
		x.p.mu.Unlock()
	}
	if err := x.at(atHeaders); err != nil {
		return err
	}
	if h.EndOfStream || x.script.Eager {
		return x.answer()
	}
	return nil
}

func (x *faultyStream) requestBody(b *extprocv3.HttpBody) error {
	for n := int64(len(b.Body)); ; {
		if was := x.p.biggest.Load(); n <= was || x.p.biggest.CompareAndSwap(was, n) {
			break
		}
	}
	if x.answered { // eager
		return x.giveLast(b.Body, b.EndOfStream)
	}
	if x.body = append(x.body, b.Body...); !b.EndOfStream {
		return nil
	}
	if err := x.answer(); err != nil {
		return err
	}
	back := x.body
	if x.script.Rewrite != nil {
		back = x.script.Rewrite(back)
	}
	const most = 62000 // as the pickers that ship
	for ; len(back) > most; back = back[most:] {
		if err := x.giveBack(back[:most], false); err != nil {
			return err
		}
	}
	return x.giveLast(back, true)
}

// giveLast gives back what may be the last piece in two halves: between them is the
// middle of the body.
func (x *faultyStream) giveLast(b []byte, eof bool) error {
	half := len(b) / 2
	if half > 0 {
		if err := x.giveBack(b[:half], false); err != nil {
			return err
		}
	}
	if err := x.at(midBody); err != nil {
		return err
	}
	return x.giveBack(b[half:], eof)
}

func (x *faultyStream) giveBack(b []byte, eof bool) error {
	return x.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: piece(b, eof)}})
}

// answer is the answer to the request's headers.
func (x *faultyStream) answer() error {
	if d, err := time.ParseDuration(x.headers[headerThink]); err == nil {
		select {
		case <-time.After(d):
		case <-x.Context().Done():
			return x.Context().Err()
		}
	}
	if err := x.at(beforeAnswer); err != nil {
		return err
	}
	if own := x.script.Own; own != nil {
		return x.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: own}})
	}
	x.answered = true
	reply := x.script.Reply
	if reply == nil {
		reply = x.pick()
	}
	if err := x.Send(reply); err != nil {
		return err
	}
	return x.at(afterHeaders)
}

func (x *faultyStream) pick() *extprocv3.ProcessingResponse {
	header, metadata := x.script.Endpoint, x.script.Endpoint
	if x.script.Header != nil {
		header = *x.script.Header
	}
	if x.script.Metadata != nil {
		metadata = *x.script.Metadata
	}
	set := append(setAgain(x.headers), setHeader(headerPicker, x.p.Name))
	set = append(set, x.script.Set...)
	m := &extprocv3.ProcessingResponse{}
	if header != "" {
		set = append(set, setHeader(keyDestination, header))
	}
	if metadata != "" {
		m.DynamicMetadata, _ = structpb.NewStruct(map[string]any{"envoy.lb": map[string]any{keyDestination: metadata}})
	}
	m.Response = &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{Response: &extprocv3.CommonResponse{
		ClearRouteCache: true, HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: set}}}}
	return m
}

func (x *faultyStream) responseHeaders(m *extprocv3.ProcessingRequest, h *extprocv3.HttpHeaders) error {
	served := m.GetMetadataContext().GetFilterMetadata()["envoy.lb"].GetFields()[keyServed].GetStringValue()
	x.p.mu.Lock()
	x.p.served = append(x.p.served, served)
	x.p.mu.Unlock()
	if err := x.at(atResponse); err != nil {
		return err
	}
	set := append(setAgain(lastValues(h)), setHeader(headerPicker, x.p.Name), setHeader("x-went-into-resp-headers", "true"))
	return x.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{
		Response: &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: set}}}}})
}

func piece(b []byte, eof bool) *extprocv3.BodyResponse {
	return &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{
		Mutation: &extprocv3.BodyMutation_StreamedResponse{StreamedResponse: &extprocv3.StreamedBodyResponse{Body: b, EndOfStream: eof}}}}}
}

// ownAnswer is an ImmediateResponse.
func ownAnswer(status int, reason, body string) *extprocv3.ImmediateResponse {
	return &extprocv3.ImmediateResponse{Status: &typev3.HttpStatus{Code: typev3.StatusCode(status)}, Body: []byte(body),
		Headers: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{setHeader("x-llm-d-request-dropped-reason", reason)}}}
}

// lastValues is the map in which real pickers keep headers: of several values the last.
func lastValues(h *extprocv3.HttpHeaders) map[string]string {
	out := map[string]string{}
	for _, v := range h.GetHeaders().GetHeaders() {
		out[strings.ToLower(v.Key)] = string(v.RawValue)
	}
	return out
}

func setAgain(headers map[string]string) []*corev3.HeaderValueOption {
	var out []*corev3.HeaderValueOption
	for k, v := range headers {
		if !strings.HasPrefix(k, ":") {
			out = append(out, setHeader(k, v))
		}
	}
	return out
}

func setHeader(k, v string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: k, RawValue: []byte(v)}}
}

// selfSigned returns a certificate for picker.test, and its PEM.
func selfSigned() (tls.Certificate, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "picker.test"}, DNSNames: []string{"picker.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), nil
}

// pickerProcess is a faultyPicker in a process of its own, for signals.
type pickerProcess struct {
	t       testing.TB
	Name    string
	Address string
	Ended   <-chan struct{} // closed when the process has ended
	Asked   atomic.Int64    // streams, over all runs
	pick    string
	cmd     *exec.Cmd
}

// envPicker makes the test's binary a picker: its value is a childPicker.
const envPicker = "SIGNALBOX_TEST_PICKER"

type childPicker struct{ Name, Listen, Pick string }

// The test's binary run with envPicker is a picker and no test. An init function, since a
// package has one TestMain.
func init() {
	if text := os.Getenv(envPicker); text != "" {
		if err := runChildPicker(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// runChildPicker serves until SIGTERM; then, as real pickers do, it finishes its streams.
func runChildPicker(text string) error {
	go func() { // ends with the test, however that ends
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	var c childPicker
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	p := &faultyPicker{Name: c.Name, tell: func() { fmt.Println("asked") }}
	p.Do(script{Endpoint: c.Pick})
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	s, err := p.serve(l, false)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	<-term
	s.GracefulStop()
	return nil
}

// startPickerProcess runs a picker that always picks one endpoint, until the test ends.
func startPickerProcess(t testing.TB, name, pick string) *pickerProcess {
	t.Helper()
	p := &pickerProcess{t: t, Name: name, Address: fmt.Sprintf("127.0.0.1:%d", freePort(t)), pick: pick}
	p.Start()
	t.Cleanup(p.Kill)
	return p
}

// Start runs the process, at the address that it had before, and waits until it listens.
func (p *pickerProcess) Start() {
	p.t.Helper()
	config, err := json.Marshal(childPicker{p.Name, p.Address, p.pick})
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envPicker+"="+string(config))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() {
		_ = cmd.Wait()
		p.t.Fatalf("the picker's process did not start: %s", &stderr)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer stdin.Close()
		for lines.Scan() {
			p.Asked.Add(1)
		}
		_ = cmd.Wait()
	}()
	p.cmd, p.Ended = cmd, ended
}

// Kill ends the process with SIGKILL, if it still runs, and waits for its end.
func (p *pickerProcess) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.Ended
}

// Signal sends SIGSTOP, SIGCONT or SIGTERM.
func (p *pickerProcess) Signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("picker %s: %v: %v", p.Name, s, err)
	}
}
