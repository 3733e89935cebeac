-- Sealed tokens: what a peer gets instead of the user's token, worth something only for what its scope needs.
--
-- A sealed token is PREFIX .. base64url(nonce .. ciphertext .. tag), by AES-256-GCM (NIST SP 800-38D) with a
-- key that only this proxy has. Inside are an expiry, the service type and the instance that it is for (its
-- audience), the resolved scope, and the token. To services, it is a token like any other.
local cipher = require("openssl.cipher")
local rand = require("openssl.rand")

local seal = {}

seal.PREFIX = "oid1."

local ALGORITHM, NONCE_BYTES, TAG_BYTES = "aes-256-gcm", 12, 16
-- A service believes a token that it has validated, and knows it by its text. So a token keeps its seal for
-- this part of the seal's life.
local REUSE = 0.5
local KEPT_AT_MOST = 1000
-- Which services of the audience's instance may carry the user's token where. Nova and glance call with
-- the user's token (nova/image/glance.py, nova/network/neutron.py, nova/volume/cinder.py, nova/utils.py
-- get_ksa_adapter; glance_store/_drivers/cinder), cinder too (cinder/image/glance.py, cinder/compute/nova.py).
local CALLS = {
    compute = { image = true, network = true, ["block-storage"] = true, placement = true },
    image = { ["block-storage"] = true },
    ["block-storage"] = { image = true, compute = true },
}

local keys, life = {}, 0

-- Reads the keys, one a line, in hexadecimal digits. The first one seals, and all of them open.
function seal.configure(path, seconds)
    life = seconds
    for line in io.lines(path) do
        keys[#keys + 1] = (line:gsub("%x%x", function(digits) return string.char(tonumber(digits, 16)) end))
    end
end

function seal.is_sealed(token)
    return token ~= nil and token:sub(1, #seal.PREFIX) == seal.PREFIX
end

local kept, kept_count = {}, 0

-- The token, sealed for a service of an instance in a scope.
function seal.close(txn, token, service, instance, scope)
    local now = os.time()
    local rest = table.concat({ service, instance, scope, token }, " ")
    local known = kept[rest]
    if known and now < known.again_at then
        return known.sealed
    end
    local nonce = rand.bytes(NONCE_BYTES)
    local closing = cipher.new(ALGORITHM):encrypt(keys[1], nonce)
    local text = closing:final(now + life .. " " .. rest)
    local sealed = seal.PREFIX .. txn.c:ub64enc(nonce .. text .. closing:getTag(TAG_BYTES))
    if kept_count == KEPT_AT_MOST then
        kept, kept_count = {}, 0
    end
    if not known then
        kept_count = kept_count + 1
    end
    kept[rest] = { sealed = sealed, again_at = now + life * REUSE }
    return sealed
end

-- What a sealed token has inside; nil if this proxy did not seal it, or too long ago.
function seal.open(txn, sealed)
    local whole = txn.c:ub64dec(sealed:sub(#seal.PREFIX + 1)) or ""
    if #whole <= NONCE_BYTES + TAG_BYTES then
        return nil
    end
    for _, key in ipairs(keys) do
        local opening = cipher.new(ALGORITHM):decrypt(key, whole:sub(1, NONCE_BYTES))
        opening:setTag(whole:sub(-TAG_BYTES))
        local text = opening:final(whole:sub(NONCE_BYTES + 1, -TAG_BYTES - 1))
        if text then
            local expiry, service, instance, scope, token = text:match("^(%d+) (%S+) (%S+) (%S+) (.*)$")
            if expiry and os.time() < tonumber(expiry) then
                return { service = service, instance = instance, scope = scope, token = token }
            end
            return nil
        end
    end
    return nil
end

-- Whether the service of the audience has a reason to call a service of that type.
function seal.may_call(inside, service)
    return (CALLS[inside.service] or {})[service] == true
end

-- Whether an instance has a reason to validate the token: it is the audience, or the audience may call it.
function seal.may_validate(inside, instance, scope)
    if instance == inside.instance then
        return true
    end
    for service in pairs(CALLS[inside.service] or {}) do
        if scope[service] == instance then
            return true
        end
    end
    return false
end

return seal
