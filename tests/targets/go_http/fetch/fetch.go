// Package fetch wraps a client, as libraries do.
package fetch

import "net/http"

// Fetcher fetches.
type Fetcher struct{ client *http.Client }

// New has a Fetcher use this client.
func New(client *http.Client) *Fetcher { return &Fetcher{client} }

// Do fetches.
//
//go:noinline
func (f *Fetcher) Do(url string) (*http.Response, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return f.client.Do(request)
}
