package entrasim

import (
	"net/http"
	"strings"
)

const metadataVersion = "2022-09-01"

// metadata is GET /metadata/endpoints: where the cloud's services are, told to
// anybody. All but login, Graph and Resource Manager is as in the public cloud,
// since some clients do not start without it.
func (s *Simulator) metadata(c *call) reply {
	switch version := c.URL.Query().Get("api-version"); version {
	case metadataVersion:
	case "":
		return missingVersion(c)
	default:
		return c.fail(http.StatusBadRequest, "InvalidApiVersionParameter", "The api-version '"+clip(version, 64)+"' is invalid. The supported versions are '"+metadataVersion+"'.")
	}
	at := s.config.endpoints()
	if public := (Config{}).endpoints(); strings.EqualFold("https://"+c.Host, public.ResourceManager) {
		at = public
	}
	audiences := []string{"https://management.core.windows.net/", "https://management.azure.com/"}
	if at.ResourceManager != (Config{}).endpoints().ResourceManager {
		audiences = append(audiences, at.ResourceManager+"/")
	}
	return armJSON(c, http.StatusOK, map[string]any{
		"name": "AzureCloud", "portal": "https://portal.azure.com",
		"authentication": map[string]any{
			"loginEndpoint": at.Login, "audiences": audiences, "tenant": "common", "identityProvider": "AAD",
		},
		"resourceManager": at.ResourceManager + "/", "microsoftGraphResourceId": at.Graph + "/",
		"graph": "https://graph.windows.net/", "graphAudience": "https://graph.windows.net/", "gallery": "https://gallery.azure.com/",
		"batch": "https://batch.core.windows.net/", "media": "https://rest.media.azure.net",
		"activeDirectoryDataLake": "https://datalake.azure.net/", "sqlManagement": "https://management.core.windows.net:8443/",
		"vmImageAliasDoc":                       "https://raw.githubusercontent.com/Azure/azure-rest-api-specs/master/arm-compute/quickstart-templates/aliases.json",
		"appInsightsResourceId":                 "https://api.applicationinsights.io",
		"appInsightsTelemetryChannelResourceId": "https://dc.applicationinsights.azure.com/v2/track",
		"attestationResourceId":                 "https://attest.azure.net", "synapseAnalyticsResourceId": "https://dev.azuresynapse.net",
		"logAnalyticsResourceId": "https://api.loganalytics.io", "ossrDbmsResourceId": "https://ossrdbms-aad.database.windows.net",
		"suffixes": map[string]string{
			"acrLoginServer": "azurecr.io", "attestationEndpoint": "attest.azure.net",
			"azureDataLakeAnalyticsCatalogAndJob": "azuredatalakeanalytics.net", "azureDataLakeStoreFileSystem": "azuredatalakestore.net",
			"azureFrontDoorEndpointSuffix": "azurefd.net", "keyVaultDns": "vault.azure.net", "mariadbServerEndpoint": "mariadb.database.azure.com",
			"mhsmDns": "managedhsm.azure.net", "mysqlServerEndpoint": "mysql.database.azure.com", "postgresqlServerEndpoint": "postgres.database.azure.com",
			"sqlServerHostname": "database.windows.net", "storage": "core.windows.net", "storageSyncEndpointSuffix": "afs.azure.net",
			"synapseAnalytics": "dev.azuresynapse.net",
		},
	})
}
