package operator

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	brokerv1 "phasekey.dev/gen/phasekey/broker/v1"
)

var consentView = view[*brokerv1.ConsentSession]{
	{label: "Session", cell: (*brokerv1.ConsentSession).GetName},
	{label: "Integration", cell: (*brokerv1.ConsentSession).GetIntegration},
	{label: "State", cell: func(c *brokerv1.ConsentSession) string { return word(c.GetState()) }},
	{label: "Link", cell: (*brokerv1.ConsentSession).GetConsentUri},
	{label: "Principal", cell: (*brokerv1.ConsentSession).GetServicePrincipalObjectId},
	{label: "Last refusal", cell: (*brokerv1.ConsentSession).GetLastRefusal},
	{label: "Last callback", cell: (*brokerv1.ConsentSession).GetLastCallback},
	{label: "Ends", cell: func(c *brokerv1.ConsentSession) string { return at(c.GetExpireTime()) }},
	{label: "Completed", cell: func(c *brokerv1.ConsentSession) string { return at(c.GetCompleteTime()) }},
}

func consent(o *options) *cobra.Command {
	return noun("consent", "Get a customer's administrator to consent to an integration", o.startConsent(), o.getConsent(), o.waitForConsent(), o.cancelConsent(), o.verifyConsent())
}

func (s *session) consent() (brokerv1.ConsentServiceClient, error) {
	conn, err := s.broker()
	return brokerv1.NewConsentServiceClient(conn), err
}

func (o *options) startConsent() *cobra.Command {
	var (
		back, requestID string
		life            time.Duration
		wait            bool
	)
	c := o.verb("start INTEGRATION", "Make a link for the customer's administrator, and wait until it has been followed", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, err := s.consent()
		if err != nil {
			return err
		}
		integration, err := s.in("integrations", args[0])
		if err != nil {
			return err
		}
		parent, _ := split(integration)
		wanted := &brokerv1.ConsentSession{Integration: integration, ReturnUri: back}
		if life != 0 {
			wanted.ExpireTime = timestamppb.New(time.Now().Add(life))
		}
		made, err := client.CreateConsentSession(ctx, &brokerv1.CreateConsentSessionRequest{Parent: parent, ConsentSession: wanted, RequestId: requestID})
		if err != nil {
			return err
		}
		if err := card(s.printer, consentView, made); err != nil || !wait {
			return err
		}
		s.note("waiting for the customer's administrator; interrupting this ends nothing (`phasekey consent wait %s`)", made.GetName())
		return s.followConsent(ctx, client, made.GetName(), true)
	})
	flags := c.Flags()
	flags.StringVar(&back, "return-uri", "", "where the page leads when the administrator is through")
	lifeFlag(c, &life, "expires-in", 0, "how long the link works; 24 hours otherwise")
	requestIDFlag(c, &requestID)
	flags.BoolVar(&wait, "wait", true, "wait for the end")
	return c
}

// consentSession is a session's name, given by its name or its ID.
func (s *session) consentSession(given string) (brokerv1.ConsentServiceClient, string, error) {
	name, err := s.in("consentSessions", given)
	if err != nil {
		return nil, "", err
	}
	client, err := s.consent()
	return client, name, err
}

func (o *options) getConsent() *cobra.Command {
	return o.verb("get SESSION", "Show how far a consent session is", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.consentSession(args[0])
		if err != nil {
			return err
		}
		session, err := client.GetConsentSession(ctx, &brokerv1.GetConsentSessionRequest{Name: name})
		if err != nil {
			return err
		}
		return card(s.printer, consentView, session)
	})
}

func (o *options) waitForConsent() *cobra.Command {
	return o.verb("wait SESSION", "Wait for the end of a consent session, and say how far it is meanwhile", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.consentSession(args[0])
		if err != nil {
			return err
		}
		return s.followConsent(ctx, client, name, false)
	})
}

func (o *options) cancelConsent() *cobra.Command {
	return o.verb("cancel SESSION", "Withdraw a consent session: its link leads nobody to consent any more", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, name, err := s.consentSession(args[0])
		if err != nil {
			return err
		}
		answer, err := client.CancelConsentSession(ctx, &brokerv1.CancelConsentSessionRequest{Name: name})
		if err != nil {
			return err
		}
		return card(s.printer, consentView, answer.GetConsentSession())
	})
}

var verifiedView = view[*brokerv1.VerifyConsentResponse]{
	{label: "Consented", cell: func(v *brokerv1.VerifyConsentResponse) string { return yes(v.GetConsented()) }},
	{label: "Principal", cell: (*brokerv1.VerifyConsentResponse).GetServicePrincipalObjectId},
	{label: "Refusal", cell: (*brokerv1.VerifyConsentResponse).GetRefusal},
	{label: "Asked", cell: func(v *brokerv1.VerifyConsentResponse) string { return at(v.GetVerifyTime()) }},
}

func (o *options) verifyConsent() *cobra.Command {
	return o.verb("verify INTEGRATION", "Ask the customer's tenant whether consent holds", cobra.ExactArgs(1), func(ctx context.Context, s *session, args []string) error {
		client, err := s.consent()
		if err != nil {
			return err
		}
		integration, err := s.in("integrations", args[0])
		if err != nil {
			return err
		}
		answer, err := client.VerifyConsent(ctx, &brokerv1.VerifyConsentRequest{Integration: integration})
		if err != nil {
			return err
		}
		return card(s.printer, verifiedView, answer)
	})
}

// followConsent says what happens to a session until it has ended. One that ended without consent is an error. known says that the
// broker has answered for it already.
func (s *session) followConsent(ctx context.Context, client brokerv1.ConsentServiceClient, name string, known bool) error {
	begun, told := time.Now(), ""
	var session *brokerv1.ConsentSession
	if err := s.persist(ctx, known, func(ctx context.Context) (came bool, err error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := client.WatchConsentSession(ctx, &brokerv1.WatchConsentSessionRequest{Name: name})
		if err != nil {
			return false, err
		}
		for {
			message, err := stream.Recv()
			if err != nil {
				return came, err
			}
			session, came = message.GetConsentSession(), true
			if now := progress(session); now != told {
				s.note("%4s  %s", about(time.Since(begun)), now)
				told = now
			}
			switch session.GetState() {
			case brokerv1.ConsentSession_STATE_WAITING_FOR_APPLICATION, brokerv1.ConsentSession_STATE_AWAITING_CONSENT, brokerv1.ConsentSession_STATE_UNSPECIFIED:
			default:
				return came, nil
			}
		}
	}); err != nil {
		return err
	}
	if session.GetState() != brokerv1.ConsentSession_STATE_COMPLETED {
		return fmt.Errorf("the session has ended without consent (%s %s): start another one", word(session.GetState()), session.GetLastRefusal())
	}
	if s.json {
		return s.document(session)
	}
	_, err := fmt.Fprintf(s.out, "Principal  %s\n", session.GetServicePrincipalObjectId())
	return err
}

// progress says in a sentence where a session is.
func progress(c *brokerv1.ConsentSession) string {
	switch c.GetState() {
	case brokerv1.ConsentSession_STATE_WAITING_FOR_APPLICATION:
		return "the application replicates in Entra ID; the page waits for it"
	case brokerv1.ConsentSession_STATE_AWAITING_CONSENT:
		switch c.GetLastCallback() {
		case "":
			return "the administrator can consent"
		case "APPROVED":
			return "the administrator's browser says approved; waiting for the tenant to prove it"
		default:
			return "the administrator's browser came back with " + c.GetLastCallback() + "; the link still works"
		}
	case brokerv1.ConsentSession_STATE_COMPLETED:
		return "consent is proven"
	default:
		return word(c.GetState())
	}
}
